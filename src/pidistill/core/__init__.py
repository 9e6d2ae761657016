"""What every other room stands on: errors, the registry of open families, seeds, tensors, processes.

Nothing in this room knows of diffusion.
"""
