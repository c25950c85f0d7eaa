"""OLMo 2: Llama with norms on what attention and the MLP add, and on all queries and keys of a layer."""

from __future__ import annotations

from dataclasses import replace

from bitnet_onnx.converters._config import Config
from bitnet_onnx.converters.families import llama
from bitnet_onnx.converters.families._family import Family, named, replaced
from bitnet_onnx.decoder import DecoderSpec, NormPlacement, QueryKeyNorm

_NAMES = {
    ".attn.output_norm.": ".post_attention_layernorm.",
    ".mlp.output_norm.": ".post_feedforward_layernorm.",
    ".query_norm.": ".q_norm.",
    ".key_norm.": ".k_norm.",
}


def spec(config: Config) -> DecoderSpec:
    """Read an OLMo 2 configuration; what is absent has the value that transformers gives it."""
    filled = config.with_defaults(vocab_size=50304, rms_norm_eps=1e-5)
    return replace(
        llama.spec(filled),
        family="olmo2",
        placement=NormPlacement.OUTPUT,
        query_key_norm=QueryKeyNorm.ALL,
        mlp_bias=False,
    )


def tensor_name(role: str) -> str:
    """`layers.0.attn.output_norm.weight` -> `model.layers.0.post_attention_layernorm.weight`, the rest as in Llama."""
    return llama.tensor_name(replaced(role, _NAMES))


FAMILY = Family("olmo2", spec, named(tensor_name), ignored=llama.FAMILY.ignored)
