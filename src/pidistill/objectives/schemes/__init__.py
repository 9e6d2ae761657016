"""Numerical differentiation of the student in t: one file is one scheme, and its name is that on the command line."""
