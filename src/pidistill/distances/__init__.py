"""Distances d(prediction, target) -> (B,). One file = one distance.

A distance is called with two (B, ...) tensors, is zero exactly where they are equal, and gives one value a sample.
"""
