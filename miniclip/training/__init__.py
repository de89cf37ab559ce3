"""The loop and what it needs: batches, optimiser, checkpoints, the machine, what the log says."""
