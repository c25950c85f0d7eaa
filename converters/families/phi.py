"""Phi 1, 1.5 and 2: attention and MLP read one norm, a part of each head is rotated, the head has a bias."""

from __future__ import annotations

from typing import Final

from bitnet_onnx.converters._config import Config
from bitnet_onnx.converters.families._activation import activation
from bitnet_onnx.converters.families._family import Family, named, replaced
from bitnet_onnx.converters.families._rotary import context_length, rotary
from bitnet_onnx.converters.families._sizes import divided
from bitnet_onnx.decoder import Attention, DecoderSpec, Norm, QueryKeyNorm, Residual

_NAMES: Final = {
    ".input_norm.": ".input_layernorm.",
    ".attn.query_norm.": ".self_attn.q_layernorm.",
    ".attn.key_norm.": ".self_attn.k_layernorm.",
    ".attn.o_proj.": ".self_attn.dense.",
    ".attn.": ".self_attn.",
    ".mlp.up_proj.": ".mlp.fc1.",
    ".mlp.down_proj.": ".mlp.fc2.",
}


def spec(config: Config) -> DecoderSpec:
    """Read a Phi configuration; what is absent has the value that transformers gives it."""
    hidden, heads = config.integer("hidden_size", 2048), config.integer("num_attention_heads", 32)
    head_dim = divided(hidden, heads)
    normed = config.boolean("qk_layernorm", False)
    return DecoderSpec(
        family="phi",
        vocab_size=config.integer("vocab_size", 51200),
        hidden_size=hidden,
        intermediate_size=config.integer("intermediate_size", 8192),
        num_hidden_layers=config.integer("num_hidden_layers", 24),
        num_attention_heads=heads,
        num_key_value_heads=config.integer("num_key_value_heads", heads),
        head_dim=head_dim,
        context_length=context_length(config, 2048),
        norm_epsilon=config.number("layer_norm_eps", 1e-5),
        activation=activation(config, "hidden_act", "gelu_new"),
        attention=(Attention(rotary(config, head_dim, partial=0.5)),),
        norm=Norm.LAYER,
        residual=Residual.PARALLEL_SHARED_NORM,
        query_key_norm=QueryKeyNorm.HEAD if normed else QueryKeyNorm.NONE,
        gated=False,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        head_bias=True,
        tie_word_embeddings=config.boolean("tie_word_embeddings", False),
    )


def tensor_name(role: str) -> str:
    """`layers.0.mlp.up_proj.bias` -> `model.layers.0.mlp.fc1.bias`."""
    if role.startswith("lm_head."):
        return role
    if role.startswith("norm."):
        return f"model.final_layernorm.{role.removeprefix('norm.')}"
    return f"model.{replaced(role, _NAMES)}"


FAMILY = Family(
    "phi",
    spec,
    named(tensor_name),
    reads=("partial_rotary_factor", "qk_layernorm"),
    ignored=(".rotary_emb.inv_freq",),
    aliases={"model.": ("",)},
)
