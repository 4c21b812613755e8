"""The scoring engine: admission control, scheduler, device workers, model sets, reload."""
