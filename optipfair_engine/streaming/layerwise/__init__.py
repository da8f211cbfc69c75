"""Calibration of a checkpoint on disk: one decoder layer at a time is brought into memory."""
