"""From a sample's texts to what a model reads, and to the spans that it judges."""
