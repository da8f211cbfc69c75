"""Prompts: published suites and files of pairs, and which positions of two prompts can be compared."""
