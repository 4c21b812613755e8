"""Reward models behind other servers' HTTP APIs."""
