"""Event sources: ROOT files and arrays in memory, batch by batch, and their way to the device.

A source answers `batch(step)` and nothing else, so a run resumes from the step number alone.
All modules here speak numpy; only `prefetch` hands arrays to JAX.
"""
