"""GPT-2: learned positions, layer norms, no gate; linear layers are stored `[in, out]`, and q, k and v as one."""

from __future__ import annotations

from typing import Final

from bitnet_onnx.converters._config import Config
from bitnet_onnx.converters.families._activation import activation
from bitnet_onnx.converters.families._family import Family, Rows, Source, replaced
from bitnet_onnx.converters.families._sizes import divided
from bitnet_onnx.decoder import ATTENTION_INPUTS, Attention, DecoderSpec, LearnedPositions, Norm

_NAMES: Final = {
    "embed_tokens.": "wte.",
    "embed_positions.": "wpe.",
    "layers.": "h.",
    ".input_norm.": ".ln_1.",
    ".post_attention_norm.": ".ln_2.",
    ".attn.o_proj.": ".attn.c_proj.",
    ".mlp.up_proj.": ".mlp.c_fc.",
    ".mlp.down_proj.": ".mlp.c_proj.",
}


def spec(config: Config) -> DecoderSpec:
    """Read a GPT-2 configuration; what is absent has the value that transformers gives it."""
    hidden, heads = config.integer("n_embd", 768), config.integer("n_head", 12)
    positions = config.integer("n_positions", 1024)
    return DecoderSpec(
        family="gpt2",
        vocab_size=config.integer("vocab_size", 50257),
        hidden_size=hidden,
        intermediate_size=config.integer("n_inner", 4 * hidden),
        num_hidden_layers=config.integer("n_layer", 12),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=divided(hidden, heads),
        context_length=positions,
        norm_epsilon=config.number("layer_norm_epsilon", 1e-5),
        activation=activation(config, "activation_function", "gelu_new"),
        attention=(Attention(),),
        norm=Norm.LAYER,
        gated=False,
        learned_positions=LearnedPositions(positions),
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        tie_word_embeddings=config.boolean("tie_word_embeddings", True),
        attention_scale=None if config.boolean("scale_attn_weights", True) else 1.0,
    )


def source(spec: DecoderSpec, role: str) -> Source:
    """`layers.0.attn.k_proj.weight` -> the second third of `transformer.h.0.attn.c_attn.weight`, transposed."""
    if role.startswith("lm_head."):
        return Source(role)
    *module, name, kind = role.split(".")
    if name in ATTENTION_INPUTS:
        size = spec.hidden_size
        rows = Rows(ATTENTION_INPUTS.index(name) * size, size, 3 * size)
        return Source(f"transformer.h.{module[1]}.attn.c_attn.{kind}", rows, transposed=True)
    if role.startswith("norm."):
        return Source(f"transformer.ln_f.{kind}")
    return Source(f"transformer.{replaced(role, _NAMES)}", transposed=name.endswith("_proj"))


FAMILY = Family(
    "gpt2",
    spec,
    source,
    reads=("scale_attn_weights",),
    # The causal mask, which older files hold in each layer.
    ignored=(".attn.bias", ".attn.masked_bias"),
    aliases={"transformer.": ("",)},
)
