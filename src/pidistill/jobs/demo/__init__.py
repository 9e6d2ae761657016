"""`pidistill demo`: a student in a page on this machine."""
