"""Calibration by several processes of one machine, under torch's own launcher.

Whoever prunes (the host) starts a launcher (``launch``), which starts the ranks (``rank``); each takes its
share of the calibration's batches, and the first leaves the sums in a folder, where the host reads them.
"""
