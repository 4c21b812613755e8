"""Packed forward passes: many samples in one row without padding, shared prefixes computed once."""
