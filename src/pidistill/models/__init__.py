"""What draws images: denoisers, students, their time grid; teachers and samplers below."""
