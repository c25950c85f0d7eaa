"""The training graph of a decoder: the third emitter of a `DecoderSpec`."""
