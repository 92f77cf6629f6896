"""Variance-shift studies in PyTorch."""

__version__ = "0.1.0"
