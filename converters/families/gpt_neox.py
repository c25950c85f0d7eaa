"""GPT-NeoX (Pythia, Dolly): parallel blocks, a part of each head is rotated, q, k and v stand head by head in one."""

from __future__ import annotations

from typing import Final

from bitnet_onnx.converters._config import Config
from bitnet_onnx.converters.families._activation import activation
from bitnet_onnx.converters.families._family import Family, Rows, Source, replaced
from bitnet_onnx.converters.families._rotary import context_length, rotary
from bitnet_onnx.converters.families._sizes import divided
from bitnet_onnx.decoder import ATTENTION_INPUTS, Attention, DecoderSpec, Norm, Residual

_NAMES: Final = {
    "embed_tokens.": "embed_in.",
    ".input_norm.": ".input_layernorm.",
    ".post_attention_norm.": ".post_attention_layernorm.",
    ".attn.o_proj.": ".attention.dense.",
    ".mlp.up_proj.": ".mlp.dense_h_to_4h.",
    ".mlp.down_proj.": ".mlp.dense_4h_to_h.",
}


def spec(config: Config) -> DecoderSpec:
    """Read a GPT-NeoX configuration; what is absent has the value that transformers gives it."""
    hidden, heads = config.integer("hidden_size", 6144), config.integer("num_attention_heads", 64)
    head_dim = divided(hidden, heads)
    base, part = config.number("rotary_emb_base", 10000.0), config.number("rotary_pct", 0.25)
    # transformers reads these two under the old names, or inside `rope_parameters`.
    rotary_config = config.with_values(rope_theta=None, partial_rotary_factor=None)
    bias = config.boolean("attention_bias", True)
    return DecoderSpec(
        family="gpt_neox",
        vocab_size=config.integer("vocab_size", 50432),
        hidden_size=hidden,
        intermediate_size=config.integer("intermediate_size", 24576),
        num_hidden_layers=config.integer("num_hidden_layers", 44),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=head_dim,
        context_length=context_length(config, 2048),
        norm_epsilon=config.number("layer_norm_eps", 1e-5),
        activation=activation(config, "hidden_act", "gelu"),
        attention=(Attention(rotary(rotary_config, head_dim, theta=base, partial=part)),),
        norm=Norm.LAYER,
        residual=Residual.PARALLEL if config.boolean("use_parallel_residual", True) else Residual.SEQUENTIAL,
        gated=False,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=True,
        tie_word_embeddings=config.boolean("tie_word_embeddings", False),
    )


def source(spec: DecoderSpec, role: str) -> Source:
    """`layers.0.attn.k_proj.weight` -> the middle third of each head of `...attention.query_key_value.weight`."""
    *module, name, kind = role.split(".")
    if role.startswith("lm_head."):
        return Source(f"embed_out.{kind}")
    if name in ATTENTION_INPUTS:
        size, heads = spec.head_dim, spec.num_attention_heads
        rows = Rows(ATTENTION_INPUTS.index(name) * size, size, 3 * size * heads, stride=3 * size, count=heads)
        return Source(f"gpt_neox.layers.{module[1]}.attention.query_key_value.{kind}", rows)
    if role.startswith("norm."):
        return Source(f"gpt_neox.final_layer_norm.{kind}")
    return Source(f"gpt_neox.{replaced(role, _NAMES)}")


FAMILY = Family(
    "gpt_neox",
    spec,
    source,
    reads=("partial_rotary_factor", "rotary_pct", "use_parallel_residual"),
    ignored=(".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"),
    aliases={"gpt_neox.": ("",), "embed_out.": ("lm_head.",)},
)
