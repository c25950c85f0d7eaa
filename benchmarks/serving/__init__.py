"""Of the engine, of its steps, and of a server under load."""
