"""Deep learning for the MEG II liquid-xenon calorimeter, and four smaller families, in JAX.

Nothing is imported here: every command answers `--help` before it pays for JAX.
"""

__version__ = "0.1.0"
