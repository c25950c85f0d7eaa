"""Qwen3: Qwen2 with norms on the queries and keys of each head in place of biases."""

from __future__ import annotations

from dataclasses import replace

from bitnet_onnx.converters._config import Config
from bitnet_onnx.converters.families import llama, qwen2
from bitnet_onnx.converters.families._family import Family, named
from bitnet_onnx.decoder import DecoderSpec, QueryKeyNorm


def spec(config: Config) -> DecoderSpec:
    """Read a Qwen3 configuration; what is absent has the value that transformers gives it."""
    return replace(qwen2.base(config.with_absent(head_dim=128)), family="qwen3", query_key_norm=QueryKeyNorm.HEAD)


def tensor_name(role: str) -> str:
    """`layers.0.attn.query_norm.weight` -> `model.layers.0.self_attn.q_norm.weight`, the rest as in Llama."""
    return llama.tensor_name(role.replace(".query_norm.", ".q_norm.").replace(".key_norm.", ".k_norm."))


FAMILY = Family("qwen3", spec, named(tensor_name), reads=qwen2.FAMILY.reads, ignored=llama.FAMILY.ignored)
