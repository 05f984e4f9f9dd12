"""The registry of trainings: finding runs, comparing them, showing them."""
