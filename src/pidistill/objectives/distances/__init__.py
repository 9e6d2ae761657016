"""Distances d(prediction, target) -> (B,). One file = one distance, its name on the command line."""
