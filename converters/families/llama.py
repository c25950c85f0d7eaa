"""Llama: pre-norm blocks, rotary attention with grouped keys and values, SwiGLU."""

from __future__ import annotations

from bitnet_onnx.converters._config import Config
from bitnet_onnx.converters.families._activation import activation
from bitnet_onnx.converters.families._family import Family, named, replaced
from bitnet_onnx.converters.families._rotary import context_length, rotary
from bitnet_onnx.decoder import Attention, DecoderSpec
from bitnet_onnx.errors import CheckpointError

_NAMES = {
    ".attn.": ".self_attn.",
    ".input_norm.": ".input_layernorm.",
    ".post_attention_norm.": ".post_attention_layernorm.",
}


def spec(config: Config) -> DecoderSpec:
    """Read a Llama configuration; what is absent has the value that transformers gives it."""
    config = config.with_defaults(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        max_position_embeddings=2048,
    )
    hidden = config.integer("hidden_size")
    heads = config.integer("num_attention_heads")
    if "head_dim" not in config and hidden % heads:
        raise CheckpointError(f"config.json: num_attention_heads {heads} does not divide hidden_size {hidden}")
    head_dim = config.integer("head_dim", hidden // heads or None)
    return DecoderSpec(
        family="llama",
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=config.integer("intermediate_size"),
        num_hidden_layers=config.integer("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=config.integer("num_key_value_heads", heads),
        head_dim=head_dim,
        context_length=context_length(config, 2048),
        norm_epsilon=config.number("rms_norm_eps", 1e-6),
        activation=activation(config),
        attention=(Attention(rotary(config, head_dim)),),
        qkv_bias=config.boolean("attention_bias", False),
        output_bias=config.boolean("attention_bias", False),
        mlp_bias=config.boolean("mlp_bias", False),
        tie_word_embeddings=config.boolean("tie_word_embeddings", False),
    )


def tensor_name(role: str) -> str:
    """`layers.0.attn.q_proj.weight` -> `model.layers.0.self_attn.q_proj.weight`."""
    if role.startswith("lm_head."):
        return role
    return f"model.{replaced(role, _NAMES)}"


FAMILY = Family("llama", spec, named(tensor_name), ignored=(".rotary_emb.inv_freq",))
