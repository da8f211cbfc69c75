"""``prune``: from a checkpoint to a smaller one, in memory or streamed."""
