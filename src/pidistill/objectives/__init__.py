"""What a training run minimises. One file = one objective, its name on the command line."""
