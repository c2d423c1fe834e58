"""The engine: runs, the training loop, checkpoints, randomness. It knows no method and no data set by name."""
