"""A sampler integrates a teacher's ODE or SDE. One file = one sampler, its name on the command line."""
