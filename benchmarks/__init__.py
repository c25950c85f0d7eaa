"""Measurements: one file per question, results as JSON."""
