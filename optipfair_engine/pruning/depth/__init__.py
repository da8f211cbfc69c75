"""Depth pruning: whole layers, and how much each layer matters."""
