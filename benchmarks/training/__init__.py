"""Figures of training: what it gains, how fast it is."""
