"""Whole jobs, one file each: what the command line's verbs and the Python entry points do."""
