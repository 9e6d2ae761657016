"""Numerical differentiation schemes of the student in t (Section 4.2). One file = one scheme."""
