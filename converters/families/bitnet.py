"""BitNet b1.58 as dense masters: Llama with squared ReLU and an RMSNorm before o_proj and down_proj.

The checkpoint holds the weights that training rounds in every step. A package holds what they are rounded to: codes
and scale of each matrix by absmean, as `WeightQuant` of transformers computes them in float32. A model that is run in
bfloat16 there rounds the scale to bfloat16 besides.
"""

from __future__ import annotations

from dataclasses import replace

from bitnet_onnx.converters._config import Config
from bitnet_onnx.converters.families import llama
from bitnet_onnx.converters.families._family import Family, named
from bitnet_onnx.decoder import DecoderSpec


def spec(config: Config) -> DecoderSpec:
    """Read a BitNet configuration; what is absent has the value that transformers gives it."""
    filled = config.with_absent(num_key_value_heads=5).with_defaults(
        vocab_size=128256,
        hidden_size=2560,
        intermediate_size=6912,
        num_hidden_layers=30,
        num_attention_heads=20,
        hidden_act="relu2",
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
    )
    return replace(llama.spec(filled), family="bitnet", attention_sub_norm=True, mlp_sub_norm=True)


def tensor_name(role: str) -> str:
    """`layers.0.attn.sub_norm.weight` -> `model.layers.0.self_attn.attn_sub_norm.weight`, the rest as in Llama."""
    role = role.replace(".attn.sub_norm.", ".attn.attn_sub_norm.").replace(".mlp.sub_norm.", ".mlp.ffn_sub_norm.")
    return llama.tensor_name(role)


FAMILY = Family("bitnet", spec, named(tensor_name), ignored=llama.FAMILY.ignored, trained_ternary=True)
