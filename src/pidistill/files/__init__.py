"""What comes from outside, or must survive: files are read as hostile, and written whole or not at all."""
