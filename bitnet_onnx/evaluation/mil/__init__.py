"""Core ML packages in numpy: a saved program is run, operation by operation, and measured against its source."""
