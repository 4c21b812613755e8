"""What is served from one change to the next, and how a next one is made."""
