"""Hyper-parameter searches: the space, one trial, the study that workers share, its results."""
