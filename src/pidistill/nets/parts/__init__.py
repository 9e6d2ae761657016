"""What networks are made of: first weights, resampling, embeddings, residual blocks, and kernels in C for the CPU."""
