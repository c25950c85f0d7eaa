"""Core ML packages out of a decoder's specification, by way of coremltools' MIL builder."""
