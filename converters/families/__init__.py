"""Families of decoders: `config.json` -> `DecoderSpec`, tensor names -> roles."""

from __future__ import annotations

import difflib

from bitnet_onnx.converters._config import Config
from bitnet_onnx.converters.families import (
    bitnet,
    gemma,
    gemma2,
    gemma3,
    gemma3_text,
    gpt2,
    gpt_neox,
    gptj,
    granite,
    llama,
    mistral,
    olmo2,
    opt,
    phi,
    phi3,
    qwen2,
    qwen3,
    smollm3,
)
from bitnet_onnx.converters.families._family import Family
from bitnet_onnx.converters.families._refused import refuse_unread
from bitnet_onnx.errors import UnsupportedError

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        bitnet.FAMILY,
        gemma.FAMILY,
        gemma2.FAMILY,
        gemma3.FAMILY,
        gemma3_text.FAMILY,
        gpt2.FAMILY,
        gpt_neox.FAMILY,
        gptj.FAMILY,
        granite.FAMILY,
        llama.FAMILY,
        mistral.FAMILY,
        olmo2.FAMILY,
        opt.FAMILY,
        phi.FAMILY,
        phi3.FAMILY,
        qwen2.FAMILY,
        qwen3.FAMILY,
        smollm3.FAMILY,
    )
}

__all__ = ["FAMILIES", "Config", "Family", "find"]


def find(config: Config) -> Family:
    """The family of a configuration.

    Raises:
        UnsupportedError: the `model_type` is unknown, or the family does not read a field that changes the arithmetic.
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
    family = FAMILIES[name]
    refuse_unread(config, family)
    return family
