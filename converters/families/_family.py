"""What a family contributes: how to read its configuration, and what it calls its tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bitnet_onnx.converters.families._config import Config
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.errors import UnsupportedError


def refuse_quantization(quantization: Config) -> None:
    """What a family does with a `quantization_config` that it knows nothing of."""
    method = quantization.string("quant_method", "unknown")
    raise UnsupportedError(
        f"config.json: quantization method {method!r:.60} is not supported; convert the unquantized checkpoint"
    )


@dataclass(frozen=True, slots=True)
class Family:
    """One family of decoders.

    Attributes:
        model_type: Hugging Face `model_type`, also the file's name.
        spec: reads `config.json`.
        tensor_name: the checkpoint's name of a role (`layers.0.attn.q_proj.weight`).
        ignored: suffixes of tensors that carry nothing to convert, such as saved rotary tables.
        check_quantization: looks at a `quantization_config` and raises where its weights are not read.
        trained_ternary: the blocks' weights are masters of ternary ones: a policy's `auto` means `ternary`.
    """

    model_type: str
    spec: Callable[[Config], DecoderSpec]
    tensor_name: Callable[[str], str]
    ignored: tuple[str, ...] = ()
    check_quantization: Callable[[Config], None] = refuse_quantization
    trained_ternary: bool = False
