"""From transformers checkpoints to networks: loading, heads, backends."""
