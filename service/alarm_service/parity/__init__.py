"""The parity gate: recipes are served only where stored samples score as they did."""
