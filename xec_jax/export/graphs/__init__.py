"""What can be exported of each experiment: one file per task, found by its name."""
