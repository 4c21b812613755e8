"""Studies on a user's own files: what stands behind select, calibrate, evaluate and judge."""
