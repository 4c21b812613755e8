"""Files that trainers load by path."""
