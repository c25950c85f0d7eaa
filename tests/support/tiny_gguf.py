"""Tiny models of each architecture: what transformers would hold, and the GGUF that llama.cpp would make of it.

Names come from the `gguf` package's own map; what its converters do to values is written down here once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tiny_checkpoints import FF, HEAD_DIM, HEADS, HIDDEN, KV_HEADS, LAYERS, write_gguf

Tensors = dict[str, np.ndarray[Any, Any]]
Shapes = dict[str, tuple[int, ...]]

ROWS, POSITIONS = 40, 128
_Q, _KV = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM

_ATTENTION: Shapes = {
    "self_attn.q_proj.weight": (_Q, HIDDEN),
    "self_attn.k_proj.weight": (_KV, HIDDEN),
    "self_attn.v_proj.weight": (_KV, HIDDEN),
    "self_attn.o_proj.weight": (HIDDEN, _Q),
}
_MLP: Shapes = {
    "mlp.gate_proj.weight": (FF, HIDDEN),
    "mlp.up_proj.weight": (FF, HIDDEN),
    "mlp.down_proj.weight": (HIDDEN, FF),
}
_NORMS: Shapes = {"input_layernorm.weight": (HIDDEN,), "post_attention_layernorm.weight": (HIDDEN,)}
_LLAMA = _ATTENTION | _MLP | _NORMS
_HEAD_NORMS: Shapes = {"self_attn.q_norm.weight": (HEAD_DIM,), "self_attn.k_norm.weight": (HEAD_DIM,)}
_FEEDFORWARD_NORMS: Shapes = {
    "pre_feedforward_layernorm.weight": (HIDDEN,),
    "post_feedforward_layernorm.weight": (HIDDEN,),
}
_TOP: Shapes = {"model.embed_tokens.weight": (ROWS, HIDDEN), "model.norm.weight": (HIDDEN,)}
_HEAD: Shapes = {"lm_head.weight": (ROWS, HIDDEN)}


def _biased(shapes: Shapes, *, of: tuple[str, ...] = ("",), transposed: bool = False) -> Shapes:
    """The weights, and biases for those whose names hold one of `of`."""
    biases = {
        name.replace(".weight", ".bias"): (shape[-1] if transposed else shape[0],)
        for name, shape in shapes.items()
        if any(part in name for part in of)
    }
    return shapes | biases


_PHI3: Shapes = {
    "self_attn.qkv_proj.weight": (_Q + 2 * _KV, HIDDEN),
    "self_attn.o_proj.weight": (HIDDEN, _Q),
    "mlp.gate_up_proj.weight": (2 * FF, HIDDEN),
    "mlp.down_proj.weight": (HIDDEN, FF),
}
_PHI2: Shapes = {
    "self_attn.q_proj.weight": (_Q, HIDDEN),
    "self_attn.k_proj.weight": (_Q, HIDDEN),
    "self_attn.v_proj.weight": (_Q, HIDDEN),
    "self_attn.dense.weight": (HIDDEN, _Q),
    "mlp.fc1.weight": (FF, HIDDEN),
    "mlp.fc2.weight": (HIDDEN, FF),
    "input_layernorm.weight": (HIDDEN,),
}
_NEOX: Shapes = {
    "attention.query_key_value.weight": (3 * _Q, HIDDEN),
    "attention.dense.weight": (HIDDEN, _Q),
    "mlp.dense_h_to_4h.weight": (FF, HIDDEN),
    "mlp.dense_4h_to_h.weight": (HIDDEN, FF),
}
_CONV1D: Shapes = {
    "attn.c_attn.weight": (HIDDEN, 3 * _Q),
    "attn.c_proj.weight": (_Q, HIDDEN),
    "mlp.c_fc.weight": (HIDDEN, FF),
    "mlp.c_proj.weight": (FF, HIDDEN),
}
_GPT2_NORMS: Shapes = {"ln_1.weight": (HIDDEN,), "ln_2.weight": (HIDDEN,)}

#: By architecture: tensors outside the blocks, where the blocks are, tensors of a block.
SHAPES: Mapping[str, tuple[Shapes, str, Shapes]] = {
    "llama": (_TOP | _HEAD, "model.layers", _LLAMA),
    "qwen2": (_TOP, "model.layers", _biased(_LLAMA, of=("q_proj", "k_proj", "v_proj"))),
    "qwen3": (_TOP, "model.layers", _LLAMA | _HEAD_NORMS),
    "gemma": (_TOP, "model.layers", _LLAMA),
    "gemma2": (_TOP, "model.layers", _LLAMA | _FEEDFORWARD_NORMS),
    "gemma3": (_TOP, "model.layers", _LLAMA | _FEEDFORWARD_NORMS | _HEAD_NORMS),
    "phi3": (_TOP | _HEAD, "model.layers", _PHI3 | _NORMS),
    "granite": (_TOP, "model.layers", _LLAMA),
    "olmo2": (
        _TOP | _HEAD,
        "model.layers",
        _ATTENTION
        | _MLP
        | {
            "self_attn.q_norm.weight": (_Q,),
            "self_attn.k_norm.weight": (_KV,),
            "post_attention_layernorm.weight": (HIDDEN,),
            "post_feedforward_layernorm.weight": (HIDDEN,),
        },
    ),
    "smollm3": (_TOP, "model.layers", _LLAMA),
    "bitnet": (
        _TOP,
        "model.layers",
        _LLAMA | {"self_attn.attn_sub_norm.weight": (_Q,), "mlp.ffn_sub_norm.weight": (FF,)},
    ),
    "gpt2": (
        {
            "transformer.wte.weight": (ROWS, HIDDEN),
            "transformer.wpe.weight": (POSITIONS, HIDDEN),
            **_biased({"transformer.ln_f.weight": (HIDDEN,)}),
        },
        "transformer.h",
        _biased(_CONV1D, transposed=True) | _biased(_GPT2_NORMS),
    ),
    "gptneox": (
        {
            "gpt_neox.embed_in.weight": (ROWS, HIDDEN),
            "embed_out.weight": (ROWS, HIDDEN),
            **_biased({"gpt_neox.final_layer_norm.weight": (HIDDEN,)}),
        },
        "gpt_neox.layers",
        _biased(_NEOX | _NORMS),
    ),
    "phi2": (
        {
            "model.embed_tokens.weight": (ROWS, HIDDEN),
            **_biased({"model.final_layernorm.weight": (HIDDEN,), "lm_head.weight": (ROWS, HIDDEN)}),
        },
        "model.layers",
        _biased(_PHI2),
    ),
}
SHAPES = {**SHAPES, "bitnet-b1.58": SHAPES["bitnet"]}

_RMS: dict[str, Any] = {"attention.layer_norm_rms_epsilon": 1e-5}
_LAYER_NORM: dict[str, Any] = {"attention.layer_norm_epsilon": 1e-5}

#: Metadata beyond the sizes, below the architecture's name.
KEYS: Mapping[str, dict[str, Any]] = {
    "llama": _RMS | {"rope.dimension_count": HEAD_DIM, "vocab_size": ROWS},
    "qwen2": _RMS | {"rope.freq_base": 1000000.0},
    "qwen3": _RMS | {"attention.key_length": HEAD_DIM, "attention.value_length": HEAD_DIM},
    "gemma": _RMS | {"attention.key_length": HEAD_DIM, "attention.value_length": HEAD_DIM},
    "gemma2": _RMS
    | {
        "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM,
        "attn_logit_softcapping": 40.0,
        "final_logit_softcapping": 20.0,
        "attention.sliding_window": 32,
    },
    "gemma3": _RMS
    | {
        "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM,
        "attention.sliding_window": 32,
        "rope.freq_base": 1000000.0,
    },
    "phi3": _RMS
    | {
        "rope.dimension_count": HEAD_DIM,
        "rope.scaling.original_context_length": POSITIONS,
        "attention.sliding_window": 0,
    },
    "granite": _RMS
    | {
        "attention.scale": 0.125,
        "embedding_scale": 12.0,
        "residual_scale": 0.25,
        "logit_scale": 8.0,
        "vocab_size": ROWS,
    },
    "olmo2": _RMS,
    "smollm3": _RMS | {"rope.dimension_count": HEAD_DIM, "vocab_size": ROWS},
    "bitnet": _RMS | {"rope.scaling.type": "linear", "rope.scaling.factor": 1.0},
    "bitnet-b1.58": _RMS | {"rope.dimension_count": HEAD_DIM, "rope.freq_base": 500000.0, "vocab_size": ROWS},
    "gpt2": _LAYER_NORM,
    "gptneox": _LAYER_NORM | {"rope.dimension_count": 4, "use_parallel_residual": True},
    "phi2": _LAYER_NORM | {"rope.dimension_count": 8},
}
_ALL_HEADS = {"gpt2", "gptneox", "phi2"}  # as many for keys as for queries


def metadata(architecture: str, **changes: Any) -> dict[str, Any]:
    """All metadata of a tiny model; a change of None removes a key (`__` stands for a dot)."""
    values = {
        "block_count": LAYERS,
        "context_length": POSITIONS,
        "embedding_length": HIDDEN,
        "feed_forward_length": FF,
        "attention.head_count": HEADS,
        **({} if architecture in _ALL_HEADS else {"attention.head_count_kv": KV_HEADS}),
        **KEYS[architecture],
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    return {f"{architecture}.{key}": value for key, value in values.items() if value is not None}


def tensors(architecture: str, seed: int = 0) -> Tensors:
    """Random values for the tensors of a tiny model, under the names of transformers."""
    random = np.random.default_rng(seed)
    top, layers, block = SHAPES[architecture]
    shapes = dict(top)
    for layer in range(LAYERS):
        shapes |= {f"{layers}.{layer}.{name}": shape for name, shape in block.items()}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def gguf_name(architecture: str, name: str) -> str:
    """The name that llama.cpp gives a tensor of transformers, by the map of the `gguf` package."""
    known = architecture.removesuffix("-b1.58")  # the package knows the first BitNet, by its names
    name = name.replace(".attn_sub_norm.", ".inner_attn_ln.").replace(".ffn_sub_norm.", ".ffn_layernorm.")
    model = next(model for model, text in gguf.MODEL_ARCH_NAMES.items() if text == known)
    found = gguf.get_tensor_name_map(model, LAYERS).get_name(name, try_suffixes=(".weight", ".bias"))
    assert found is not None, name
    return found


def gguf_tensors(architecture: str, values: Mapping[str, np.ndarray[Any, Any]]) -> Tensors:
    """What llama.cpp writes for the tensors of a transformers model."""
    return {gguf_name(architecture, name): _stored(architecture, name, array) for name, array in values.items()}


def _stored(architecture: str, name: str, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if architecture in {"llama", "granite", "smollm3"} and (".q_proj." in name or ".k_proj." in name):
        dim = HEAD_DIM
        return np.concatenate([to_pairs(array[start : start + dim]) for start in range(0, len(array), dim)])
    if architecture in {"gemma", "gemma2", "gemma3"} and name.endswith("norm.weight"):
        return array + np.float32(1)
    if architecture == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
        return np.ascontiguousarray(array.T)
    if architecture == "gptneox" and ".query_key_value." in name:
        by_head = [np.split(head, 3) for head in np.split(array, HEADS)]
        return np.concatenate([part[letter] for letter in range(3) for part in by_head])
    return array


def to_pairs(head: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Rows of one head: row i of the first half, then row i of the second."""
    half = len(head) // 2
    return np.stack([row for i in range(half) for row in (head[i], head[half + i])])


def write_tiny(path: Path, architecture: str, *, extra: Tensors | None = None, **changes: Any) -> Tensors:
    """Write a tiny model and return its tensors under the names of transformers.

    `extra` are tensors under GGUF names; `changes` are metadata, see `metadata`.
    """
    values = tensors(architecture)
    # A small offset makes what gemma adds to norms exact in float32.
    values = {name: np.round(array * 256) / np.float32(256) for name, array in values.items()}
    write_gguf(
        path,
        metadata(architecture, **changes),
        gguf_tensors(architecture, values) | (extra or {}),
        architecture=architecture,
    )
    return values


def write_shards(
    path: Path, pairs: Mapping[str, Any], parts: list[Tensors], architecture: str = "llama", **changes: Any
) -> list[Path]:
    """`NAME-00001-of-0000N.gguf` and so on; `changes` are keys of the last part (`__` stands for a dot)."""
    paths = []
    total = sum(map(len, parts))
    for number, part in enumerate(parts):
        keys = dict(pairs) if number == 0 else {}
        keys |= {"split.no": number, "split.count": len(parts), "split.tensors.count": total}
        if number == len(parts) - 1:
            keys |= {key.replace("__", "."): value for key, value in changes.items()}
        own = changes.get("general__architecture", architecture) if number == len(parts) - 1 else architecture
        keys.pop("general.architecture", None)
        target = path / f"tiny-{number + 1:05}-of-{len(parts):05}.gguf"
        paths.append(write_gguf(target, {k: v for k, v in keys.items() if v is not None}, part, architecture=own))
    return paths
