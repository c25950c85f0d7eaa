"""What GGUF metadata says about a model, in the words of config.json and generation_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bitnet_onnx.converters.checkpoints._base import TensorInfo
from bitnet_onnx.converters.checkpoints._gguf_metadata import Metadata
from bitnet_onnx.errors import CheckpointError, UnsupportedError
from bitnet_onnx.json_input import shown

#: Divisors of the rotary inverse frequencies, one for each pair of a head.
ROPE_FACTORS = "rope_freqs.weight"

_BLOCK_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """How one `general.architecture` of GGUF maps to Hugging Face."""

    #: `model_type` and `architectures[0]` of config.json.
    model_type: str
    class_name: str
    hidden_act: str
    #: Tensor names without `blk.N.` and `.weight` or `.bias`, to the names below `model.layers.N.`.
    block_tensors: Mapping[str, str]
    #: Those whose rows stand in rotary pairs (0, half, 1, half + 1, ...) within each head.
    paired: frozenset[str]


ARCHITECTURES = {
    "llama": Architecture(
        model_type="llama",
        class_name="LlamaForCausalLM",
        hidden_act="silu",
        block_tensors=_BLOCK_TENSORS,
        paired=frozenset({"attn_q", "attn_k"}),
    ),
}

# Keys below the architecture's name that are read here, or that say nothing about the arithmetic.
_KNOWN_KEYS = frozenset(
    {
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.layer_norm_rms_epsilon",
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
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
        "tensor_data_layout",
        "vocab_size",
    }
)

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


def architecture_of(metadata: Metadata) -> Architecture:
    """The architecture's row of the table.

    Raises:
        UnsupportedError: it has none, or the file is one part of several.
    """
    if metadata.integer("split.count", 1) > 1:
        raise UnsupportedError(
            f"{metadata.source}: one of {metadata.integer('split.count')} parts of a split GGUF; "
            "merge them first (llama-gguf-split --merge)"
        )
    name = metadata.text("general.architecture")
    if name not in ARCHITECTURES:
        raise UnsupportedError(
            f"{metadata.source}: architecture {shown(name)} is not read from GGUF, only {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]


def model_config(
    architecture: Architecture, metadata: Metadata, tensors: Mapping[str, TensorInfo]
) -> dict[str, object]:
    """The content of config.json; `tensors` have their Hugging Face names.

    Raises:
        CheckpointError: a value is missing, of a wrong type, or contradicts another.
        UnsupportedError: a key that changes the arithmetic in a way that is not known.
    """
    prefix = metadata.text("general.architecture") + "."
    for key in metadata.values:
        if key.startswith(prefix) and key.removeprefix(prefix) not in _KNOWN_KEYS:
            raise UnsupportedError(f"{metadata.source}: metadata {shown(key)} is not known, and may change the model")
    if metadata.integer(prefix + "expert_count", 0):
        raise UnsupportedError(f"{metadata.source}: mixtures of experts ({prefix}expert_count) are not read")

    hidden = metadata.integer(prefix + "embedding_length")
    heads = metadata.integer(prefix + "attention.head_count")
    context = metadata.integer(prefix + "context_length")
    config: dict[str, object] = {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        "hidden_act": architecture.hidden_act,
        "hidden_size": hidden,
        "intermediate_size": metadata.integer(prefix + "feed_forward_length"),
        "num_hidden_layers": metadata.integer(prefix + "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.integer(prefix + "attention.head_count_kv", heads),
        "head_dim": head_dim_of(metadata),
        "vocab_size": _vocab_size(metadata, prefix, tensors),
        "rms_norm_eps": metadata.number(prefix + "attention.layer_norm_rms_epsilon"),
        "rope_theta": metadata.number(prefix + "rope.freq_base", 10000.0),
        "max_position_embeddings": context,
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "attention_bias": any(name.endswith(".bias") and ".self_attn." in name for name in tensors),
        "mlp_bias": any(name.endswith(".bias") and ".mlp." in name for name in tensors),
        "torch_dtype": "float32",
    }
    scaling = _rope_scaling(metadata, prefix, context)
    if scaling is not None:
        config["rope_scaling"] = scaling
    return config | {f"{key}_token_id": value for key, value in special_ids(metadata).items() if key != "unk"}


def head_dim_of(metadata: Metadata) -> int:
    """Elements of one attention head, all of them rotary.

    Raises:
        CheckpointError: the heads do not divide the hidden size, or are odd.
        UnsupportedError: values differ from keys in size, or only a part of the head is rotary.
    """
    prefix = metadata.text("general.architecture") + "."
    hidden = metadata.integer(prefix + "embedding_length")
    heads = metadata.integer(prefix + "attention.head_count")
    if heads == 0:
        raise CheckpointError(f"{metadata.source}: {prefix}attention.head_count is 0")
    key = prefix + "attention.key_length"
    if key not in metadata.values and hidden % heads:
        raise CheckpointError(f"{metadata.source}: {heads} heads do not divide an embedding_length of {hidden}")
    head_dim = metadata.integer(key, hidden // heads)
    if head_dim == 0 or head_dim % 2:
        raise CheckpointError(f"{metadata.source}: heads of {head_dim} elements; rotary heads are even")
    if metadata.integer(prefix + "attention.value_length", head_dim) != head_dim:
        raise UnsupportedError(f"{metadata.source}: {prefix}attention.value_length differs from the key length")
    rotary = metadata.integer(prefix + "rope.dimension_count", head_dim)
    if rotary != head_dim:
        raise UnsupportedError(f"{metadata.source}: {prefix}rope.dimension_count {rotary}, but heads of {head_dim}")
    return head_dim


def generation_config(metadata: Metadata) -> dict[str, object]:
    """The content of generation_config.json: `eos_token_id` lists every token that ends a turn or a text."""
    if "tokenizer.ggml.tokens" not in metadata.values:
        return {}
    tokens = metadata.texts("tokenizer.ggml.tokens")
    special = special_ids(metadata)
    ends = [special["eos"]] if "eos" in special else []
    ends += [_token_id(metadata, key, len(tokens)) for key in ("eot", "eom") if _id_key(key) in metadata.values]
    if "tokenizer.ggml.token_type" in metadata.values:
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
    if "tokenizer.ggml.tokens" not in metadata.values:
        return {}
    count = len(metadata.texts("tokenizer.ggml.tokens"))
    return {
        key: _token_id(metadata, key, count) for key in ("bos", "eos", "pad", "unk") if _id_key(key) in metadata.values
    }


def _id_key(name: str) -> str:
    return f"tokenizer.ggml.{_LONG_NAMES.get(name, name)}_token_id"


def _token_id(metadata: Metadata, name: str, count: int) -> int:
    value = metadata.integer(_id_key(name))
    if value >= count:
        raise CheckpointError(f"{metadata.source}: {_id_key(name)} is {value}, but there are {count} tokens")
    return value


def _vocab_size(metadata: Metadata, prefix: str, tensors: Mapping[str, TensorInfo]) -> int:
    embedding = tensors.get("model.embed_tokens.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{metadata.source}: there is no matrix token_embd.weight")
    rows = embedding.shape[0]
    counts = {prefix + "vocab_size": metadata.integer(prefix + "vocab_size", rows)}
    if "tokenizer.ggml.tokens" in metadata.values:
        counts["tokenizer.ggml.tokens"] = len(metadata.texts("tokenizer.ggml.tokens"))
    for key, count in counts.items():
        if count != rows:
            raise CheckpointError(f"{metadata.source}: {key} says {count} tokens, token_embd.weight has {rows} rows")
    return rows


def _rope_scaling(metadata: Metadata, prefix: str, context: int) -> dict[str, object] | None:
    if prefix + "rope.scale_linear" in metadata.values:  # the key before scaling had a type
        return {"rope_type": "linear", "factor": metadata.number(prefix + "rope.scale_linear")}
    scaling = prefix + "rope.scaling."
    kind = metadata.text(scaling + "type", "none")
    if kind == "none":
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": metadata.number(scaling + "factor")}
    if kind == "yarn":
        result: dict[str, object] = {
            "rope_type": "yarn",
            "factor": metadata.number(scaling + "factor"),
            "original_max_position_embeddings": metadata.integer(scaling + "original_context_length", context),
        }
        names = {"attn_factor": "attention_factor", "yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}
        for key, name in names.items():
            if scaling + key in metadata.values:
                result[name] = metadata.number(scaling + key)
        return result
    raise UnsupportedError(f"{metadata.source}: {scaling}type {shown(kind)} is not one of none, linear, yarn")
