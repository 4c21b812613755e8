"""Reward models: one file per kind, from samples to scores."""
