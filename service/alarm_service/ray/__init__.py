"""Models on a Ray cluster, each with replicas of its own, behind the same routes."""
