"""One small module a trainer: what its reward hook sends, what it must get back, and no more."""
