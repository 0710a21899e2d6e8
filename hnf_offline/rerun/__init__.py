"""Retrain from a checkpoint: zoom between checkpoints, and what would have happened under a policy."""
