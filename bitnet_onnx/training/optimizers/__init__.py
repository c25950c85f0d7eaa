"""Optimizers over one block of memory."""
