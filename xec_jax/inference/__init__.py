"""Trained networks at work: runs and exported models, asked the same way, batch by batch."""
