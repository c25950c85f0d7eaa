"""Families of decoders: `config.json` -> `DecoderSpec`, tensor names -> roles."""

from __future__ import annotations

import difflib

from bitnet_onnx.converters._config import Config
from bitnet_onnx.converters.families import bitnet, llama
from bitnet_onnx.converters.families._family import Family
from bitnet_onnx.errors import UnsupportedError

FAMILIES: dict[str, Family] = {family.model_type: family for family in (bitnet.FAMILY, llama.FAMILY)}

__all__ = ["FAMILIES", "Config", "Family", "find"]


def find(config: Config) -> Family:
    """The family of a configuration.

    Raises:
        UnsupportedError: the `model_type` is unknown.
    """
    name = config.string("model_type")
    if name in {"bitnet", "llama"} and bitnet.ORIGINAL_ARCHITECTURE in config.strings("architectures"):
        return bitnet.ORIGINAL  # its configurations call themselves llama
    if name not in FAMILIES:
        near = difflib.get_close_matches(name[:60], FAMILIES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UnsupportedError(
            f"config.json: model_type {name!r:.60} is not supported{hint} (known: {', '.join(sorted(FAMILIES))})"
        )
    return FAMILIES[name]
