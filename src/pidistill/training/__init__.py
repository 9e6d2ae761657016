"""Running a training: configuration, loop, step, checkpoints, memory."""
