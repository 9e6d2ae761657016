"""Measuring images, and showing what was measured."""
