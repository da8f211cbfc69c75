"""Attention pruning: query heads and KV groups."""
