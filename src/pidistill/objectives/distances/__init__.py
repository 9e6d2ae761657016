"""Distances d(prediction, target) -> (B,): one file is one distance, and its name is that on the command line."""
