"""Evaluation of trained runs: metrics, predictions, figures, opponents, and a report of it all."""
