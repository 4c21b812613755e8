"""Many samples in one forward pass: end to end, without padding, shared beginnings once."""
