"""The calorimeter networks once more, in PyTorch, written from their description alone.

A second opinion for tests and a yardstick for benchmarks: nothing in `xec_jax` imports it, and it
imports nothing of `xec_jax`. Parameters carry the names of the PyTorch predecessor.
"""
