"""Whole experts of mixtures: how many stay, which, and the plan of it."""
