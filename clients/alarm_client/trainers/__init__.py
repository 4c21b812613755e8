"""Reward hooks: one module per trainer."""
