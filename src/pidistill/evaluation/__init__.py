"""Evaluation measures the images that models draw, and shows what was measured."""
