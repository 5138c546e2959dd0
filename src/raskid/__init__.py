"""Raskid: a runtime for parallel programs in Python."""

__version__ = "0.1.0"
