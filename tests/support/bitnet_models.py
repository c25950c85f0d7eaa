"""Tiny BitNet checkpoints in every form that transformers and its relatives write, made without torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tiny_models import TINY, TinyModel, tensors, tokenizer

from bitnet_onnx.ternary import quantize_absmean

DIVIDES = {"quant_method": "bitnet", "modules_to_not_convert": None}
MULTIPLIES = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}
ONLINE = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}

#: A Llama whose makers say that it is a BitNet, with biases: both senses add them, each in its own place.
FALCON = TinyModel(
    11,
    {
        **TINY["untied_gqa"].config,
        "rope_scaling": None,
        "is_bitnet_config": True,
        "attention_bias": True,
        "mlp_bias": True,
    },
)
SILU = TinyModel(12, {**TINY["bitnet"].config, "hidden_act": "silu", "rope_theta": 10000.0})
NORMS = {"use_rms_norm": True, "rms_norm_eps": 1e-5}


@dataclass(frozen=True)
class Stored:
    """A tensor as a safetensors file has it."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True)
class Packed:
    """A checkpoint: its files' content, and what must be read from it."""

    config: dict[str, object]
    stored: dict[str, Stored]
    codes: dict[str, np.ndarray] = field(default_factory=dict)
    scales: dict[str, np.float32] = field(default_factory=dict)


def bfloat16(values: np.ndarray) -> np.ndarray:
    """Rounded to bfloat16, half to even, as float32."""
    bits = values.astype("<f4").view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype("<u4").view("<f4")


def stored(values: np.ndarray, dtype: str = "BF16") -> Stored:
    if dtype == "BF16":
        data = (bfloat16(values).view("<u4") >> 16).astype("<u2").tobytes()
    else:
        data = values.astype({"F32": "<f4", "F16": "<f2", "U8": "u1"}[dtype]).tobytes()
    return Stored(dtype, values.shape, data)


def pack(codes: np.ndarray) -> np.ndarray:
    """-1, 0, 1 `[out, in]` -> bytes `[out / 4, in]`, one bit pair a quarter of the rows."""
    quarters = (codes + 1).astype(np.uint8).reshape(4, len(codes) // 4, -1)
    return quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6


def is_linear(name: str) -> bool:
    return name.endswith("_proj.weight")


def packed(model: TinyModel, quantization: Mapping[str, object], *, norms: bool = False, dense: bool = False) -> Packed:
    """A packed checkpoint whose scale goes the way of its linear class; `dense` leaves -1, 0, 1 as floats."""
    rng = np.random.default_rng(model.seed)
    divides = quantization.get("linear_class", "bitlinear") == "bitlinear"
    result = Packed({**model.config, "quantization_config": dict(quantization)}, {})
    for name, master in tensors(model).items():
        if not is_linear(name):
            result.stored[name] = stored(master)
            continue
        matrix = quantize_absmean(master)
        codes = matrix.signed().astype(np.int8)
        scale = bfloat16(np.float32(1) / matrix.scale if divides else matrix.scale)
        result.stored[name] = stored(codes) if dense else stored(pack(codes), "U8")
        result.stored[f"{name}_scale"] = stored(scale)
        result.codes[name] = codes
        result.scales[name] = np.float32(1) / scale[0] if divides else scale[0]
        if norms:
            weight = 1 + 0.2 * rng.standard_normal(master.shape[1])
            result.stored[name.replace(".weight", ".rms_norm.weight")] = stored(weight.astype(np.float32))
    return result


def masters(model: TinyModel, quantization: Mapping[str, object] | None, *, norms: bool = False) -> Packed:
    """A checkpoint of dense masters in bfloat16."""
    rng = np.random.default_rng(model.seed)
    config = {**model.config, **({"quantization_config": dict(quantization)} if quantization else {})}
    result = Packed(config, {name: stored(master) for name, master in tensors(model).items()})
    for name, master in tensors(model).items():
        if not is_linear(name):
            continue
        matrix = quantize_absmean(bfloat16(master))
        result.codes[name], result.scales[name] = matrix.signed().astype(np.int8), matrix.scale[0]
        if norms:
            weight = 1 + 0.2 * rng.standard_normal(master.shape[1])
            result.stored[name.replace(".weight", ".rms_norm.weight")] = stored(weight.astype(np.float32))
    return result


def original() -> Packed:
    """Dense masters of 1bitLLM: SiLU, other names, and a configuration that calls itself llama."""
    result = masters(SILU, None)
    result.config.update(
        model_type="llama", architectures=["BitnetForCausalLM"], input_bits=8, weight_bits=1, attention_bias=False
    )
    for ours, theirs in (("attn_sub_norm", "inner_attn_ln"), ("ffn_sub_norm", "ffn_layernorm")):
        for name in [name for name in result.stored if ours in name]:
            result.stored[name.replace(ours, theirs)] = result.stored.pop(name)
    return result


#: Every form, by name; the golden files are called so too.
CASES: dict[str, Callable[[], Packed]] = {
    "bitnet_divides": lambda: packed(TINY["bitnet"], DIVIDES),
    "bitnet_multiplies": lambda: packed(TINY["bitnet"], MULTIPLIES),
    "bitnet_online": lambda: masters(TINY["bitnet"], ONLINE),
    "bitnet_original": original,
    "llama_divides": lambda: packed(FALCON, DIVIDES),
    "llama_divides_norms": lambda: packed(FALCON, DIVIDES | NORMS, norms=True),
    "llama_multiplies": lambda: packed(FALCON, MULTIPLIES),
    "llama_multiplies_dense": lambda: packed(FALCON, MULTIPLIES | NORMS, norms=True, dense=True),
    "llama_online_norms": lambda: masters(FALCON, ONLINE | NORMS, norms=True),
}

#: The same model under names that transformers knows, where those of the form are not.
REFERENCES: dict[str, Callable[[], Packed]] = {"bitnet_original": lambda: masters(SILU, ONLINE)}


def write(directory: Path, checkpoint: Packed, **changes: Stored | None) -> Path:
    """The directory, with other tensors for some (dots as `__`), or without them."""
    directory.mkdir(parents=True, exist_ok=True)
    content = {**checkpoint.stored, **{name.replace("__", "."): tensor for name, tensor in changes.items()}}
    write_tensors(directory / "model.safetensors", {k: tensor for k, tensor in content.items() if tensor is not None})
    (directory / "config.json").write_text(json.dumps(checkpoint.config))
    (directory / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))
    vocabulary = checkpoint.config["vocab_size"]
    assert isinstance(vocabulary, int)
    tokenizer(vocabulary).save(str(directory / "tokenizer.json"))
    return directory


def write_tensors(path: Path, content: Mapping[str, Stored]) -> None:
    header, data = {}, b""
    for name, tensor in content.items():
        offsets = [len(data), len(data) + len(tensor.data)]
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        data += tensor.data
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
