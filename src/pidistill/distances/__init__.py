"""Distances d(prediction, target) -> (B,). One file = one distance."""
