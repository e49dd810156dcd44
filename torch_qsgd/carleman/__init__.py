"""Representations of a window of SGD as a truncated discrete Carleman system."""
