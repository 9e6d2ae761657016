"""A kind of teacher is one file, whose name is KIND in the teacher spec KIND:REST."""
