"""What GGUF metadata says about a model, in the words of config.json and generation_config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping

from bitnet_onnx.converters.checkpoints._base import TensorInfo
from bitnet_onnx.converters.checkpoints._gguf_architectures import (
    LONG_FACTORS,
    ROPE_FACTORS,
    SHORT_FACTORS,
    Architecture,
    nearest,
)
from bitnet_onnx.converters.checkpoints._gguf_metadata import Metadata
from bitnet_onnx.errors import CheckpointError, UnsupportedError
from bitnet_onnx.json_input import shown

# Keys below the architecture's name that are read here, or that say nothing about the arithmetic.
_KNOWN_KEYS = frozenset(
    {
        "attention.causal",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "block_count",
        "context_length",
        "embedding_length",
        "expert_count",
        "expert_used_count",
        "feed_forward_length",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scale_linear",
        "rope.scaling.attn_factor",
        "rope.scaling.factor",
        "rope.scaling.finetuned",
        "rope.scaling.original_context_length",
        "rope.scaling.type",
        "rope.scaling.yarn_attn_factor",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
        "tensor_data_layout",
        "vocab_size",
    }
)
#: Layers that a file may claim; the deepest models of today have 130.
_MAX_LAYERS = 10_000

# Control tokens that end a turn or a text. Chat models learn to end with the first kind and base models with
# the second; a GGUF names only one of them as eos_token_id, and a model that utters another would run on for ever.
_END_TOKENS = frozenset(
    {
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end|>",
        "<end_of_turn>",
        "<end_of_utterance>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "</s>",
    }
)
_CONTROL = 3
_LONG_NAMES = {"pad": "padding", "unk": "unknown"}


def model_config(
    architecture: Architecture,
    metadata: Metadata,
    tensors: Mapping[str, TensorInfo],
    factors: Mapping[str, list[float]],
) -> dict[str, object]:
    """The content of config.json.

    Args:
        architecture: the row of the table.
        metadata: of the file.
        tensors: by their Hugging Face names.
        factors: the contents of the tensors that are `architecture.factors`.

    Raises:
        CheckpointError: a value is missing, of a wrong type, or contradicts another.
        UnsupportedError: a key that changes the arithmetic in a way that is not known.
    """
    section = metadata.section(metadata.text("general.architecture") + ".")
    prefix, source = section.prefix, section.source
    known = _KNOWN_KEYS | architecture.keys | {architecture.epsilon}
    for key in section.names():
        if key not in known:
            raise UnsupportedError(
                f"{source}: metadata {shown(prefix + key)} is not known, and may change the model"
                f"{nearest(prefix + key, [prefix + name for name in known])}"
            )
    if section.integer("expert_count", 0):
        raise UnsupportedError(f"{source}: mixtures of experts ({prefix}expert_count) are not read")
    if not section.flag("attention.causal", True):
        raise UnsupportedError(f"{source}: {prefix}attention.causal is false: not a decoder")
    layers = section.integer("block_count")
    if layers > _MAX_LAYERS:
        raise CheckpointError(f"{source}: {prefix}block_count is {layers}, the limit is {_MAX_LAYERS}")

    head_dim, rotary_dim = head_dim_of(architecture, metadata)
    heads = section.integer("attention.head_count")
    attention, mlp = (architecture.block[name].partition(".")[0] for name in ("attn_output", "ffn_down"))
    common: dict[str, object] = {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        "hidden_act": architecture.hidden_act,
        "hidden_size": section.integer("embedding_length"),
        "intermediate_size": section.integer("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": section.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab_size": _vocab_size(architecture, metadata, tensors),
        "rms_norm_eps": section.number(architecture.epsilon),
        "rope_theta": section.number("rope.freq_base", 10000.0),
        "max_position_embeddings": section.integer("context_length"),
        "tie_word_embeddings": architecture.top["output"] + ".weight" not in tensors,
        "attention_bias": any(name.endswith(".bias") and f".{attention}." in name for name in tensors),
        "mlp_bias": any(name.endswith(".bias") and f".{mlp}." in name for name in tensors),
        "torch_dtype": "float32",
    }
    if architecture.partial_rotary:
        common["partial_rotary_factor"] = _fraction(rotary_dim, head_dim)
    scaling = _rope_scaling(section, factors)
    if scaling is not None:
        common["rope_scaling"] = scaling
    if ROPE_FACTORS in factors:
        common["rope_factors"] = factors[ROPE_FACTORS]
    details = architecture.details(section, common)
    ids = {f"{key}_token_id": value for key, value in special_ids(metadata).items() if key != "unk"}
    named = ((architecture.renamed.get(key, key), value) for key, value in common.items())
    return {key: value for key, value in named if key is not None} | details | ids


def head_dim_of(architecture: Architecture, metadata: Metadata) -> tuple[int, int]:
    """Elements of one attention head, and how many of them are rotary.

    Raises:
        CheckpointError: the heads do not divide the hidden size, or are odd.
        UnsupportedError: values differ from keys in size, or only a part of the head is rotary.
    """
    section = metadata.section(metadata.text("general.architecture") + ".")
    hidden = section.integer("embedding_length")
    heads = section.integer("attention.head_count")
    if heads == 0:
        raise CheckpointError(f"{section.source}: {section.prefix}attention.head_count is 0")
    key = "attention.key_length"
    if key not in section and hidden % heads:
        raise CheckpointError(f"{section.source}: {heads} heads do not divide an embedding_length of {hidden}")
    head_dim = section.integer(key, hidden // heads)
    if head_dim == 0 or head_dim % 2:
        raise CheckpointError(f"{section.source}: heads of {head_dim} elements; rotary heads are even")
    if section.integer("attention.value_length", head_dim) != head_dim:
        raise UnsupportedError(f"{section.source}: {section.prefix}attention.value_length differs from the key length")
    rotary = section.integer("rope.dimension_count", head_dim)
    where = f"{section.source}: {section.prefix}rope.dimension_count {rotary}, but heads of {head_dim}"
    if rotary != head_dim and not architecture.partial_rotary:
        raise UnsupportedError(where)
    if not 0 < rotary <= head_dim or rotary % 2:
        raise CheckpointError(where)
    return head_dim, rotary


def _fraction(part: int, whole: int) -> float:
    """`part / whole` such that `int(whole * fraction)` is `part` again, as transformers computes it."""
    fraction = part / whole
    return fraction if int(whole * fraction) == part else math.nextafter(fraction, 1.0)


def generation_config(metadata: Metadata) -> dict[str, object]:
    """The content of generation_config.json: `eos_token_id` lists every token that ends a turn or a text."""
    if "tokenizer.ggml.tokens" not in metadata:
        return {}
    tokens = metadata.texts("tokenizer.ggml.tokens")
    special = special_ids(metadata)
    ends = [special["eos"]] if "eos" in special else []
    ends += [_token_id(metadata, key, len(tokens)) for key in ("eot", "eom") if _id_key(key) in metadata]
    if "tokenizer.ggml.token_type" in metadata:
        types = metadata.integers("tokenizer.ggml.token_type")
        ends += [
            index
            for index, (text, kind) in enumerate(zip(tokens, types, strict=False))
            if kind == _CONTROL and text in _END_TOKENS
        ]
    result: dict[str, object] = {"eos_token_id": list(dict.fromkeys(ends))} if ends else {}
    return result | {f"{key}_token_id": special[key] for key in ("bos", "pad") if key in special}


def special_ids(metadata: Metadata) -> dict[str, int]:
    """The ids of bos, eos, pad and unk, as far as the file names them."""
    if "tokenizer.ggml.tokens" not in metadata:
        return {}
    count = len(metadata.texts("tokenizer.ggml.tokens"))
    return {key: _token_id(metadata, key, count) for key in ("bos", "eos", "pad", "unk") if _id_key(key) in metadata}


def _id_key(name: str) -> str:
    return f"tokenizer.ggml.{_LONG_NAMES.get(name, name)}_token_id"


def _token_id(metadata: Metadata, name: str, count: int) -> int:
    value = metadata.integer(_id_key(name))
    if value >= count:
        raise CheckpointError(f"{metadata.source}: {_id_key(name)} is {value}, but there are {count} tokens")
    return value


def _vocab_size(architecture: Architecture, metadata: Metadata, tensors: Mapping[str, TensorInfo]) -> int:
    embedding = tensors.get(architecture.top["token_embd"] + ".weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{metadata.source}: there is no matrix token_embd.weight")
    rows = embedding.shape[0]
    key = metadata.text("general.architecture") + ".vocab_size"
    counts = {key: metadata.integer(key, rows)}
    if "tokenizer.ggml.tokens" in metadata:
        counts["tokenizer.ggml.tokens"] = len(metadata.texts("tokenizer.ggml.tokens"))
    for key, count in counts.items():
        if count != rows:
            raise CheckpointError(f"{metadata.source}: {key} says {count} tokens, token_embd.weight has {rows} rows")
    return rows


def _rope_scaling(section: Metadata, factors: Mapping[str, list[float]]) -> dict[str, object] | None:
    """`rope_scaling` of config.json."""
    if LONG_FACTORS in factors or SHORT_FACTORS in factors:
        return _longrope(section, factors)
    if "rope.scale_linear" in section:  # the key before scaling had a type
        return _linear(section.number("rope.scale_linear"))
    kind = section.text("rope.scaling.type", "none")
    if kind == "none":
        return None
    factor = section.number("rope.scaling.factor") if kind in {"linear", "yarn"} else 1.0
    if kind == "linear":
        return _linear(factor)
    if kind == "yarn":
        result: dict[str, object] = {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": section.integer(
                "rope.scaling.original_context_length", section.integer("context_length")
            ),
        }
        names = {"yarn_attn_factor": "attention_factor", "yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}
        for key, name in names.items():
            if f"rope.scaling.{key}" in section:
                result[name] = section.number(f"rope.scaling.{key}")
        if "rope.scaling.attn_factor" in section:
            # In llama.cpp this one is a factor on YaRN's own, in transformers the product of both.
            result["attention_factor"] = section.number("rope.scaling.attn_factor") * (0.1 * math.log(factor) + 1)
        return result
    raise UnsupportedError(
        f"{section.source}: {section.prefix}rope.scaling.type {shown(kind)} is not one of none, linear, yarn"
    )


def _linear(factor: float) -> dict[str, object] | None:
    return None if factor == 1 else {"rope_type": "linear", "factor": factor}


def _longrope(section: Metadata, factors: Mapping[str, list[float]]) -> dict[str, object]:
    if section.text("rope.scaling.type", "longrope") != "longrope":
        raise CheckpointError(
            f"{section.source}: {section.prefix}rope.scaling.type is not longrope, but there is {LONG_FACTORS}.weight"
        )
    for name in (LONG_FACTORS, SHORT_FACTORS):
        if name not in factors:
            raise CheckpointError(f"{section.source}: there is no tensor {name}.weight")
    result: dict[str, object] = {
        "rope_type": "longrope",
        "long_factor": factors[LONG_FACTORS],
        "short_factor": factors[SHORT_FACTORS],
    }
    if "rope.scaling.attn_factor" in section:
        result["attention_factor"] = section.number("rope.scaling.attn_factor")
    return result
