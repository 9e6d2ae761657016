"""Flags of commands that take seconds."""

from __future__ import annotations

POINTS = ["--teacher", "gaussian:2,modes=4,std=0.1"]
RANDOM = ["--set", "student.init=random", "--set", "student.net={name: mlp, width: 16, depth: 2}"]
SHORT = ["--set", "train={steps: 5, batch: 8}", "--set", "evaluate.num=16", "--set", "grid.points=10",
         "--set", "log.every=2", "--set", "checkpoint.every=2", "--set", "preview={every: 4, seeds: 0-3}"]
QUICK = [*POINTS, *RANDOM, *SHORT]
