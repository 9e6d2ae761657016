"""What networks are made of: residual blocks of U-Nets, and kernels in C for the CPU."""
