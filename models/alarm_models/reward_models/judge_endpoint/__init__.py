"""Judges behind OpenAI-compatible chat endpoints: requests, stored answers, budgets."""
