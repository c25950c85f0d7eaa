"""A decoder as transformers' BitNet: the same with a norm before `o_proj` and one before `down_proj`."""

from __future__ import annotations

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


def bitnet_config(config: Mapping[str, object], spec: DecoderSpec, name: str) -> dict[str, object]:
    """config.json of model_type `bitnet` for a decoder that, but for its sub-norms, is a Llama.

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
    if spec.attention_size != spec.hidden_size:
        raise _refused(name, "head_dim", spec.head_dim, f"{spec.num_attention_heads} heads as wide as hidden_size")
    # The quantization_config says whether norms stand inside linear layers.
    found = replace(describe(Config(result)).spec, linear_norm_epsilon=spec.linear_norm_epsilon)
    wanted = replace(spec, family="bitnet", attention_sub_norm=True, mlp_sub_norm=True)
    for field in fields(DecoderSpec):
        value, other = getattr(wanted, field.name), getattr(found, field.name)
        if value != other:
            raise _refused(name, field.name, value, other)
    return result


def _refused(name: str, field: str, value: object, other: object) -> UnsupportedError:
    return UnsupportedError(
        f"{name}: {field} is {_short(value)}: transformers' BitNet, as which a model with sub-norms is saved, "
        f"has {_short(other)}; leave model.sub_norms out"
    )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
