"""Figures from plain arrays; nothing here knows a network, a file format or a window system."""
