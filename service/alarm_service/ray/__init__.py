"""Models as Ray Serve deployments with their own replicas, behind the same routes."""
