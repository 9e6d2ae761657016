"""What a training run minimises: one file is one objective, and its name is that on the command line."""
