"""Training: objectives, the loop, the optimizer, checkpoints and figures of a run."""
