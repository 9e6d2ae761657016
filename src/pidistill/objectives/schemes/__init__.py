"""Numerical differentiation of the student in t. One file = one scheme, its name on the command line."""
