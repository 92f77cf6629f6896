"""Training a config: the loop, its steps, checkpoints and evaluation."""
