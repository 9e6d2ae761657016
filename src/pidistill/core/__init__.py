"""What every other room stands on: errors, the registry of open families, seeds, tensors, processes. Knows nothing of diffusion."""
