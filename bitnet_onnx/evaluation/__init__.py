"""Measuring packages: against a forward pass that shares nothing with the emitter."""
