"""Training: recipe, batches, optimizer, checkpoints, the loop, and what a run leaves behind."""
