"""Networks that images are compared in: one file is one kind, and its name is that on the command line."""
