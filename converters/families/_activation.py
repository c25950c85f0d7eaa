"""The MLP's activation out of a configuration."""

from __future__ import annotations

from typing import Final

from bitnet_onnx.converters._config import Config

#: Hugging Face has several names for one function.
_ALIASES: Final = {
    "swish": "silu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu_squared": "relu2",
}


def activation(config: Config, field: str = "hidden_act", default: str = "silu") -> str:
    """The activation by the name that `DecoderSpec` knows it by; it refuses those that are unknown."""
    name = config.string(field, default)
    return _ALIASES.get(name, name)
