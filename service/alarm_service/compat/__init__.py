"""Routes that trainers call with nothing of ours installed: they are given a URL."""
