"""What a family contributes: how to read its configuration, and what it calls its tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bitnet_onnx.converters.families._config import Config
from bitnet_onnx.decoder import DecoderSpec


@dataclass(frozen=True, slots=True)
class Family:
    """One family of decoders.

    Attributes:
        model_type: Hugging Face `model_type`, also the file's name.
        spec: reads `config.json`.
        tensor_name: the checkpoint's name of a role (`layers.0.attn.q_proj.weight`).
        ignored: suffixes of tensors that carry nothing to convert, such as saved rotary tables.
    """

    model_type: str
    spec: Callable[[Config], DecoderSpec]
    tensor_name: Callable[[str], str]
    ignored: tuple[str, ...] = ()
