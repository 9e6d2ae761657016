"""A way out of the package. One file is one format, and its name that on the command line."""
