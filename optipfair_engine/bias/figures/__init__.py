"""Figures of differences: which are needed, the data of each, how each is drawn and written."""
