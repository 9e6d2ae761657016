"""Raw networks F(x, c_noise, labels): one file is one network, and its name is that on the command line."""
