"""The machine around the reward models: HTTP, batching, devices, metrics."""
