"""What the metadata of single architectures say, in keys of config.json.

Each function takes the metadata below the architecture's name and the common keys. What a GGUF leaves out, llama.cpp
fills in from the size of the model; the same is done here, with the source of the rule named.
"""

from __future__ import annotations

from collections.abc import Mapping

from bitnet_onnx.converters.checkpoints._gguf_metadata import Metadata
from bitnet_onnx.errors import CheckpointError, UnsupportedError

Common = Mapping[str, object]
Options = dict[str, object]

_SLIDING, _FULL = "sliding_attention", "full_attention"

GPT2_NAMES: Mapping[str, str | None] = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "num_key_value_heads": None,
    "head_dim": None,
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
    "rms_norm_eps": "layer_norm_epsilon",
    "hidden_act": "activation_function",
    "rope_theta": None,
    "attention_bias": None,
    "mlp_bias": None,
}
GPTNEOX_NAMES: Mapping[str, str | None] = {
    "num_key_value_heads": None,
    "head_dim": None,
    "rms_norm_eps": "layer_norm_eps",
    "rope_theta": "rotary_emb_base",
    "partial_rotary_factor": "rotary_pct",
    "mlp_bias": None,
}
PHI2_NAMES: Mapping[str, str | None] = {
    "head_dim": None,
    "rms_norm_eps": "layer_norm_eps",
    "attention_bias": None,
    "mlp_bias": None,
}


def none(_metadata: Metadata, _common: Common) -> Options:
    """Nothing beyond the common keys."""
    return {}


def gemma(_metadata: Metadata, common: Common) -> Options:
    """The activation under its later name."""
    return {"hidden_activation": common["hidden_act"]}


def gemma2(metadata: Metadata, common: Common) -> Options:
    """Soft caps, and windows in every other layer, the first included."""
    return {
        "hidden_activation": common["hidden_act"],
        "query_pre_attn_scalar": _query_scalar(metadata, layers_of_27b=46),
        "attn_logit_softcapping": metadata.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": metadata.number("final_logit_softcapping", 30.0),
        **_windows(metadata, metadata.integer("attention.sliding_window", 4096), period=2),
    }


def gemma3(metadata: Metadata, common: Common) -> Options:
    """Windows in all layers but every sixth, with a rotary base of their own."""
    result: Options = {
        "hidden_activation": common["hidden_act"],
        "query_pre_attn_scalar": _query_scalar(metadata, layers_of_27b=62),
        "rope_local_base_freq": metadata.number("rope.freq_base_swa", 10000.0),
        **_windows(metadata, metadata.integer("attention.sliding_window", 0), period=6),
    }
    if "final_logit_softcapping" in metadata:
        result["final_logit_softcapping"] = metadata.number("final_logit_softcapping")
    scaling = common.get("rope_scaling")
    if isinstance(scaling, Mapping) and scaling["rope_type"] != "linear":
        raise UnsupportedError(f"{metadata.source}: rope scaling {scaling['rope_type']!r} in a gemma3 model")
    return result


def phi3(metadata: Metadata, _common: Common) -> Options:
    """A window, and the context before it was extended."""
    window = metadata.integer("attention.sliding_window", 0)
    result: Options = {"sliding_window": window or None}
    if "rope.scaling.original_context_length" in metadata:
        result["original_max_position_embeddings"] = metadata.integer("rope.scaling.original_context_length")
    return result


def granite(metadata: Metadata, _common: Common) -> Options:
    """Four multipliers."""
    if not metadata.flag("rope.scaling.finetuned", True):  # llama.cpp leaves the rotation out then
        raise UnsupportedError(f"{metadata.source}: {metadata.prefix}rope.scaling.finetuned is false: no rotation")
    return {
        "attention_multiplier": metadata.number("attention.scale", max(_head_dim(metadata), 1) ** -0.5),
        "embedding_multiplier": metadata.number("embedding_scale", 1.0),
        "residual_multiplier": metadata.number("residual_scale", 1.0),
        "logits_scaling": metadata.number("logit_scale"),
    }


def smollm3(metadata: Metadata, _common: Common) -> Options:
    """No rotation in every fourth layer: fixed in llama.cpp, not a key."""
    layers = metadata.integer("block_count")
    return {
        "no_rope_layer_interval": 4,
        "no_rope_layers": [int((layer + 1) % 4 != 0) for layer in range(layers)],
        "use_sliding_window": False,
    }


def gptneox(metadata: Metadata, _common: Common) -> Options:
    """Whether attention and MLP read the same input."""
    return {"use_parallel_residual": metadata.flag("use_parallel_residual", True)}


def phi2(_metadata: Metadata, _common: Common) -> Options:
    """Queries and keys have no norms: a GGUF has no room for them."""
    return {"qk_layernorm": False}


def _query_scalar(metadata: Metadata, *, layers_of_27b: int) -> int:
    """What the scores are divided by the square root of; llama.cpp knows the model with another by its depth."""
    if metadata.integer("block_count") == layers_of_27b:
        return metadata.integer("embedding_length") // max(metadata.integer("attention.head_count"), 1)
    return _head_dim(metadata)


def _head_dim(metadata: Metadata) -> int:
    heads = max(metadata.integer("attention.head_count"), 1)
    return metadata.integer("attention.key_length", metadata.integer("embedding_length") // heads)


def _windows(metadata: Metadata, window: int, *, period: int) -> Options:
    """`sliding_window` and `layer_types`: the last layer of every period sees everything."""
    layers = metadata.integer("block_count")
    key = "attention.sliding_window_pattern"
    if window == 0:
        return {"layer_types": [_FULL] * layers}
    if key in metadata and isinstance(metadata.values[metadata.prefix + key], list):
        sliding = metadata.flags(key)
        if len(sliding) != layers:
            raise CheckpointError(
                f"{metadata.source}: {metadata.prefix}{key} has {len(sliding)} entries for {layers} layers"
            )
    else:
        period = metadata.integer(key, period)
        if period == 0:
            raise CheckpointError(f"{metadata.source}: {metadata.prefix}{key} is 0")
        sliding = [(layer + 1) % period != 0 for layer in range(layers)]
    return {"sliding_window": window, "layer_types": [_SLIDING if slides else _FULL for slides in sliding]}
