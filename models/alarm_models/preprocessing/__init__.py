"""From a sample's texts to token ids and segment spans."""
