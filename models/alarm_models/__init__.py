"""Reward models, rules and recipes: rewards without a server."""
