"""Kinds of teachers. One file = one kind, its name is KIND in KIND:REST."""
