"""`python -m bitnet_onnx`."""

from bitnet_onnx.cli import main

main()
