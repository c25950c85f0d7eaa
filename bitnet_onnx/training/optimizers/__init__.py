"""Rules that turn gradients into steps, in place on the flat arrays of a `ParameterStore`."""
