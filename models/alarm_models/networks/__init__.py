"""Checkpoints become networks: a transformer on its device, and the head that reads it."""
