"""Recipes: their schema, model specs and loading from TOML. Imports no torch."""
