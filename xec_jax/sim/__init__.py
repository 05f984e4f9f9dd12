"""Generators of events with known truth, one file per experiment."""
