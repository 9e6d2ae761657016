"""A metric is a number of a set of images. One file = one metric, its name on the command line."""
