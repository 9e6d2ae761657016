"""Raw networks F(x, c_noise, labels). One file = one network, its name on the command line."""
