"""Choosing aspects, setting constants and comparing policies: arithmetic on scores, no model."""
