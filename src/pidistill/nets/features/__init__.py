"""Networks that images are compared in. One file = one kind of network, its name on the command line."""
