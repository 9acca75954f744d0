"""Training: setup, the loop, checkpoints, logging."""
