"""What every stage that trains has in common: start, run, save, and choose among checkpoints."""
