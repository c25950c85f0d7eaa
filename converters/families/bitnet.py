"""BitNet b1.58: Llama with an RMSNorm before o_proj and down_proj, and an activation of its own.

There are two: that of transformers, with squared ReLU, and that of the first reproduction (1bitLLM/bitnet_b1_58-*),
with SiLU and other names. A checkpoint of dense weights holds the masters that training rounds in every step. A package
holds what they are rounded to: codes and scale of each matrix by absmean, as `WeightQuant` of transformers computes
them in float32. A model that is run in bfloat16 there rounds the scale to bfloat16 besides.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from bitnet_onnx.converters._config import Config
from bitnet_onnx.converters.families import llama
from bitnet_onnx.converters.families._family import Family, named
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.errors import UnsupportedError

#: In `architectures`, with a small n.
ORIGINAL_ARCHITECTURE: Final = "BitnetForCausalLM"
_ORIGINAL_BITS: Final = {"input_bits": 8, "weight_bits": 1}


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


def original_spec(config: Config) -> DecoderSpec:
    """Read a configuration of 1bitLLM; what is absent has the value that Llama gives it."""
    for field, bits in _ORIGINAL_BITS.items():
        found = config.integer(field, bits)
        if found != bits:
            raise UnsupportedError(
                f"config.json: {field} is {found}: a {ORIGINAL_ARCHITECTURE} is read with {bits} only"
            )
    return replace(llama.spec(config), family="bitnet", attention_sub_norm=True, mlp_sub_norm=True)


def original_tensor_name(role: str) -> str:
    """`layers.0.attn.sub_norm.weight` -> `model.layers.0.self_attn.inner_attn_ln.weight`, the rest as in Llama."""
    role = role.replace(".attn.sub_norm.", ".attn.inner_attn_ln.").replace(".mlp.sub_norm.", ".mlp.ffn_layernorm.")
    return llama.tensor_name(role)


FAMILY = Family("bitnet", spec, named(tensor_name), ignored=llama.FAMILY.ignored, trained_ternary=True)

ORIGINAL = Family(
    "bitnet", original_spec, named(original_tensor_name), ignored=llama.FAMILY.ignored, trained_ternary=True
)
