"""OPT: learned positions that start at row 2, relu; opt-350m norms after the sum and has narrower embeddings."""

from __future__ import annotations

from typing import Final

from bitnet_onnx.converters._config import Config
from bitnet_onnx.converters.families._activation import activation
from bitnet_onnx.converters.families._family import Family, Source, replaced
from bitnet_onnx.converters.families._sizes import divided
from bitnet_onnx.decoder import Attention, DecoderSpec, LearnedPositions, Norm, NormPlacement

#: Rows of the table of positions that no position has.
_OFFSET: Final = 2
_NAMES: Final = {
    ".input_norm.": ".self_attn_layer_norm.",
    ".attn.residual_norm.": ".self_attn_layer_norm.",
    ".post_attention_norm.": ".final_layer_norm.",
    ".mlp.residual_norm.": ".final_layer_norm.",
    ".attn.o_proj.": ".self_attn.out_proj.",
    ".attn.": ".self_attn.",
    ".mlp.up_proj.": ".fc1.",
    ".mlp.down_proj.": ".fc2.",
}


def spec(config: Config) -> DecoderSpec:
    """Read an OPT configuration; what is absent has the value that transformers gives it."""
    hidden, heads = config.integer("hidden_size", 768), config.integer("num_attention_heads", 12)
    positions = config.integer("max_position_embeddings", 2048)
    embedding = config.integer("word_embed_proj_dim", hidden)
    before, bias = config.boolean("do_layer_norm_before", True), config.boolean("enable_bias", True)
    return DecoderSpec(
        family="opt",
        vocab_size=config.integer("vocab_size", 50272),
        hidden_size=hidden,
        intermediate_size=config.integer("ffn_dim", 3072),
        num_hidden_layers=config.integer("num_hidden_layers", 12),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=divided(hidden, heads),
        context_length=positions,
        norm_epsilon=1e-5,
        activation=activation(config, "activation_function", "relu"),
        attention=(Attention(),),
        norm=Norm.LAYER,
        norm_affine=config.boolean("layer_norm_elementwise_affine", True),
        placement=NormPlacement.INPUT if before else NormPlacement.RESIDUAL,
        final_norm=not config.boolean("_remove_final_layer_norm", False),
        gated=False,
        learned_positions=LearnedPositions(positions + _OFFSET, _OFFSET),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=bias,
        tie_word_embeddings=config.boolean("tie_word_embeddings", True),
        embedding_size=0 if embedding == hidden else embedding,
    )


def source(spec: DecoderSpec, role: str) -> Source:
    """`layers.0.attn.o_proj.bias` -> `model.decoder.layers.0.self_attn.out_proj.bias`."""
    if role.startswith("lm_head."):
        return Source(role)
    if not spec.norm_affine and "norm." in role:
        return Source("", constant=1.0 if role.endswith(".weight") else 0.0)
    if role.startswith("norm."):
        return Source(f"model.decoder.final_layer_norm.{role.removeprefix('norm.')}")
    return Source(f"model.decoder.{replaced(role, _NAMES)}")


FAMILY = Family("opt", spec, source, aliases={"model.decoder.": ("decoder.",)})
