"""BitNet b1.58 as dense masters: Llama with squared ReLU and an RMSNorm before o_proj and down_proj.

The checkpoint holds the weights that training rounds in every step. A package holds what they are rounded to: codes
and scale of each matrix by absmean, as `WeightQuant` of transformers computes them in float32. A model that is run in
bfloat16 there rounds the scale to bfloat16 besides.
"""

from __future__ import annotations

from dataclasses import replace

from bitnet_onnx.converters.families import llama
from bitnet_onnx.converters.families._config import Config
from bitnet_onnx.converters.families._family import Family, refuse_quantization
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.errors import UnsupportedError


def spec(config: Config) -> DecoderSpec:
    """Read a BitNet configuration; what is absent has the value that transformers gives it."""
    filled = config.with_defaults(hidden_act="relu2", rms_norm_eps=1e-5, rope_theta=500000.0)
    return replace(llama.spec(filled), family="bitnet", attention_sub_norm=True, mlp_sub_norm=True)


def tensor_name(role: str) -> str:
    """`layers.0.attn.sub_norm.weight` -> `model.layers.0.self_attn.attn_sub_norm.weight`, the rest as in Llama."""
    role = role.replace(".attn.sub_norm.", ".attn.attn_sub_norm.").replace(".mlp.sub_norm.", ".mlp.ffn_sub_norm.")
    return llama.tensor_name(role)


def check_quantization(quantization: Config) -> None:
    """Accept masters that are quantized online, with the head left alone.

    Raises:
        UnsupportedError: the weights are packed, or linear layers are not what this family emits.
    """
    if quantization.string("quant_method", "unknown") != "bitnet":
        refuse_quantization(quantization)
    linear_class = quantization.string("linear_class", "bitlinear")
    mode = quantization.string("quantization_mode", "offline")
    if (linear_class, mode) != ("autobitlinear", "online"):
        raise UnsupportedError(
            f"config.json: quantization_config: {linear_class!r:.60} {mode!r:.60} means packed ternary weights, "
            f"which are not read; convert the checkpoint with bfloat16 masters (autobitlinear online)"
        )
    if quantization.boolean("use_rms_norm", False):
        raise UnsupportedError(
            "config.json: quantization_config: use_rms_norm is true: a norm inside every linear layer is not supported"
        )
    kept = quantization.strings("modules_to_not_convert")
    if set(kept) - {"lm_head"}:
        raise UnsupportedError(
            f"config.json: quantization_config: modules_to_not_convert is {list(kept)!r:.60}: "
            f"only lm_head may be left out"
        )


FAMILY = Family(
    "bitnet",
    spec,
    tensor_name,
    ignored=llama.FAMILY.ignored,
    check_quantization=check_quantization,
    trained_ternary=True,
)
