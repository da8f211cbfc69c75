"""Figures of differences: which are needed, how each is drawn, and the guide's calls that draw them."""
