"""Metrics: pure functions from features or images to a number. One file = one metric."""
