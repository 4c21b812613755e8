"""Compiled kernels for what a transformer on a CPU does between its matrix products."""
