"""Offline evaluation behind `alarm select`, `calibrate`, `evaluate` and `judge`."""
