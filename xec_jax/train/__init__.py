"""The training engine: one loop for every experiment. It never names a task."""
