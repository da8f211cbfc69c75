"""Verbs about all jobs together: what changed, how many there are, whose turn it is, what goes."""
