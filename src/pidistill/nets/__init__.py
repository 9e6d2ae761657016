"""Networks F(x, c_noise, labels). One file = one network."""
