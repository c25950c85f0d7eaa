"""The MLP's activation out of a configuration."""

from __future__ import annotations

from typing import Final

from bitnet_onnx.converters._config import Config

#: Hugging Face has several names for one function.
_ALIASES: Final = {"swish": "silu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}


def activation(config: Config) -> str:
    """`hidden_act` by the name that `DecoderSpec` knows it by; it refuses those that are unknown."""
    name = config.string("hidden_act", "silu")
    return _ALIASES.get(name, name)
