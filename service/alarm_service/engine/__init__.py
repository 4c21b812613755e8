"""The scoring engine: admission control, queue, batching, device workers, model sets, reload."""
