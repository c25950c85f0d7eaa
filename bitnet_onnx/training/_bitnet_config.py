"""A decoder as transformers' BitNet: the same with a norm before `o_proj` and one before `down_proj`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Final

from bitnet_onnx.converters._config import Config
from bitnet_onnx.converters.model import describe
from bitnet_onnx.decoder import DecoderSpec, MlpActivation
from bitnet_onnx.errors import UnsupportedError

#: Fields that are taken over where the source has them: how positions are rotated, and how weights are drawn.
_KEPT: Final = (
    "initializer_range",
    "max_position_embeddings",
    "original_max_position_embeddings",
    "rope_factors",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
)
#: transformers has other ids than null for those that a BitNet's configuration leaves out.
_TOKENS: Final = ("bos_token_id", "eos_token_id", "pad_token_id")
_ACTIVATIONS: Final = {MlpActivation.GELU_TANH: "gelu_pytorch_tanh"}


def as_bitnet(config: Mapping[str, object], spec: DecoderSpec, name: str) -> tuple[dict[str, object], DecoderSpec]:
    """config.json of model_type `bitnet` for a decoder that, but for its sub-norms, is a Llama; and what it says.

    Args:
        config: the content of its config.json.
        spec: what it says; with sub-norms or without.
        name: of the model, for messages.

    Raises:
        UnsupportedError: transformers' BitNet has no place for something that the decoder has.
    """
    activation = MlpActivation(spec.activation) if spec.activation in set(MlpActivation) else None
    rotary = spec.layer(0).rotary
    result: dict[str, object] = {
        "architectures": ["BitNetForCausalLM"],
        "model_type": "bitnet",
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_hidden_layers,
        "num_attention_heads": spec.num_attention_heads,
        "num_key_value_heads": spec.num_key_value_heads,
        "hidden_act": _ACTIVATIONS.get(activation, spec.activation) if activation else spec.activation,
        "max_position_embeddings": spec.context_length,
        "rms_norm_eps": spec.norm_epsilon,
        "tie_word_embeddings": spec.tie_word_embeddings,
        "attention_bias": spec.qkv_bias,
        **({} if rotary is None else {"rope_theta": rotary.theta}),
        **{field: config[field] for field in _KEPT if config.get(field) is not None},
        **{field: config.get(field) for field in _TOKENS},
    }
    found = describe(Config(result)).spec
    # The quantization_config says whether norms stand inside linear layers.
    found = replace(found, linear_norm_epsilon=spec.linear_norm_epsilon)
    usual = spec.attention_scale is not None and math.isclose(spec.attention_scale, spec.head_dim**-0.5)
    wanted = replace(
        spec,
        family="bitnet",
        attention_sub_norm=True,
        mlp_sub_norm=True,
        attention_scale=None if usual else spec.attention_scale,
    )
    for field in fields(DecoderSpec):
        value, other = getattr(wanted, field.name), getattr(found, field.name)
        if field.name not in {"attention", "head_dim"} and value != other:
            raise _refused(name, f"{field.name} is {_short(value)}", _short(other))
    if spec.attention_size != spec.hidden_size:
        raise _refused(
            name, f"head_dim is {spec.head_dim}", f"heads that are hidden_size = {spec.hidden_size} together"
        )
    if {spec.layer(index) for index in range(spec.num_hidden_layers)} != set(found.attention):
        raise _refused(name, f"layers attend with {_kinds(spec)}", "one full rotation and no window in all layers")
    return result, found


def _refused(name: str, what: str, other: str) -> UnsupportedError:
    return UnsupportedError(
        f"{name}: {what}: transformers' BitNet, as which a model with sub-norms is saved, has {other}; "
        f"leave model.sub_norms out"
    )


def _kinds(spec: DecoderSpec) -> str:
    """What is unusual about the layers' attention."""
    layers = [spec.layer(index) for index in range(spec.num_hidden_layers)]
    windows = sorted({str(layer.window) for layer in layers if layer.window})
    if windows:
        return f"a window of {', '.join(windows)[:40]}"
    if any(layer.rotary is None for layer in layers):
        return "no rotary embedding in some of them"
    dims = {layer.rotary.dim for layer in layers if layer.rotary is not None}
    return f"a rotation of {max(dims)} of {spec.head_dim} features of their own kind"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
