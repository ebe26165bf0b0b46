"""Saccade learns to see without labels."""

__version__ = "0.1.0"
