"""A decoder in the words of GGUF metadata, and the proof that they say all of it.

What is written is read again by the rules of `checkpoints`: a model that would come out as another one is refused, by
the name of what GGUF has no word for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from math import isclose
from typing import Any, Final

import numpy as np

from bitnet_onnx.converters._config import Config
from bitnet_onnx.converters.checkpoints._base import TensorInfo
from bitnet_onnx.converters.checkpoints._gguf_architectures import (
    ARCHITECTURES,
    LONG_FACTORS,
    ROPE_FACTORS,
    SHORT_FACTORS,
    Architecture,
)
from bitnet_onnx.converters.checkpoints._gguf_config import model_config
from bitnet_onnx.converters.checkpoints._gguf_metadata import Metadata, Value
from bitnet_onnx.converters.families import FAMILIES, Family, find
from bitnet_onnx.converters.model import SourceModel
from bitnet_onnx.decoder import DecoderSpec, MlpActivation, Residual, Rotary
from bitnet_onnx.errors import CheckpointError, UnsupportedError
from bitnet_onnx.quantized import FloatArray

#: Families whose decoders GGUF files hold under the architecture of another one.
_SAME_AS: Final = {"mistral": "llama", "falcon3": "llama", "gemma3": "gemma3_text"}
_FLOAT32: Final = 2e-7
#: Of the last layer of each period readers take it that it sees everything, unless a pattern says otherwise.
_PERIODS: Final = {"gemma2": 2, "gemma3": 6}


@dataclass(frozen=True, slots=True)
class GgufArchitecture:
    """Where a decoder goes.

    Attributes:
        name: `general.architecture`.
        row: names and layouts of its tensors.
        family: of transformers, whose names and layouts `row` translates.
    """

    name: str
    row: Architecture
    family: Family


def architecture_for(model: SourceModel) -> GgufArchitecture:
    """The architecture that a decoder has in a GGUF.

    Raises:
        UnsupportedError: there is none.
    """
    spec = model.spec
    wanted = _SAME_AS.get(spec.family, spec.family)
    for name, row in ARCHITECTURES.items():
        if row.model_type == wanted and wanted in FAMILIES and _fits(name, spec):
            return GgufArchitecture(name, row, FAMILIES[wanted])
    known = sorted({row.model_type for row in ARCHITECTURES.values()} | set(_SAME_AS))
    raise UnsupportedError(
        f"{model.path}: there is no GGUF architecture for a {spec.family} decoder (known: {', '.join(known)}); "
        f"choose --to safetensors"
    )


def _fits(name: str, spec: DecoderSpec) -> bool:
    if spec.family != "bitnet":
        return True
    return (name == "bitnet-b1.58") == (spec.activation == MlpActivation.RELU2)


def metadata_of(model: SourceModel, architecture: GgufArchitecture) -> tuple[dict[str, Value], dict[str, FloatArray]]:
    """Metadata below the architecture's name, and tensors that are part of the configuration."""
    spec, prefix = model.spec, f"{architecture.name}."
    rotary, local = _rotaries(spec)
    values: dict[str, Value] = {
        "vocab_size": spec.vocab_size,
        "context_length": spec.context_length,
        "embedding_length": spec.hidden_size,
        "block_count": spec.num_hidden_layers,
        "feed_forward_length": spec.intermediate_size,
        "attention.head_count": spec.num_attention_heads,
        "attention.head_count_kv": spec.num_key_value_heads,
        architecture.row.epsilon: spec.norm_epsilon,
    }
    tensors: dict[str, FloatArray] = {}
    if rotary is not None:
        values |= {
            "attention.key_length": spec.head_dim,
            "attention.value_length": spec.head_dim,
            "rope.dimension_count": rotary.dim,
            "rope.freq_base": rotary.theta,
        }
        scaling, tensors = _scaling(model, architecture.row, rotary)
        values |= scaling
    window = max((layer.window for layer in spec.attention), default=0)
    options: dict[str, Value] = {
        "attention.sliding_window": window,
        "attn_logit_softcapping": spec.attention_softcap,
        "final_logit_softcapping": spec.logit_softcap,
        "attention.scale": spec.attention_scale or 0.0,
        "embedding_scale": spec.embedding_scale,
        "residual_scale": spec.residual_scale,
        "logit_scale": 1 / spec.logit_scale,
        "use_parallel_residual": spec.residual is not Residual.SEQUENTIAL,
    }
    sliding = [bool(spec.layer(index).window) for index in range(spec.num_hidden_layers)]
    period = _PERIODS.get(architecture.name, 1)
    if window and sliding != [(index + 1) % period != 0 for index in range(spec.num_hidden_layers)]:
        options["attention.sliding_window_pattern"] = sliding
    if local is not None:
        options["rope.freq_base_swa"] = local.theta
    for key, value in options.items():
        if key in architecture.row.keys and (value or isinstance(value, bool)):
            values[key] = value
    rounded = {
        prefix + key: float(np.float32(value)) if isinstance(value, float) else value for key, value in values.items()
    }
    return rounded, tensors


def check_says_all(
    model: SourceModel,
    architecture: GgufArchitecture,
    metadata: Mapping[str, Value],
    tensors: Mapping[str, FloatArray],
    infos: Mapping[str, TensorInfo],
) -> None:
    """Read the metadata again and compare.

    Args:
        model: what is to be written.
        architecture: where it goes.
        metadata: all of them.
        tensors: that are part of the configuration.
        infos: of the weights by their names in transformers.

    Raises:
        UnsupportedError: another decoder would be read.
    """
    factors = {name: [float(value) for value in array] for name, array in tensors.items()}
    where = f"{model.path}: as GGUF of architecture {architecture.name!r}"
    try:
        config = model_config(architecture.row, Metadata(dict(metadata), where), infos, factors)
        found = find(Config(config)).spec(Config(config))
    except CheckpointError as error:
        raise UnsupportedError(f"{where} it would be broken: {error}; choose --to safetensors") from error
    spec = model.spec
    for field in fields(DecoderSpec):
        if field.name == "family":
            continue
        ours, theirs = _plain(getattr(spec, field.name), spec), _plain(getattr(found, field.name), spec)
        if not _same(ours, theirs):
            raise UnsupportedError(
                f"{where} it would have another {field.name.replace('_', ' ')}: GGUF has no word for "
                f"{_short(ours, theirs)}; choose --to safetensors"
            )


def _rotaries(spec: DecoderSpec) -> tuple[Rotary | None, Rotary | None]:
    """Rotation of the layers that see everything, and that of those with a window."""
    whole = [layer.rotary for layer in spec.attention if layer.rotary is not None and not layer.window]
    local = [layer.rotary for layer in spec.attention if layer.rotary is not None and layer.window]
    return next(iter([*whole, *local]), None), next(iter(local), None)


def _scaling(model: SourceModel, row: Architecture, rotary: Rotary) -> tuple[dict[str, Value], dict[str, FloatArray]]:
    """Context extension: by its rule where GGUF has it, else by its divisors where the architecture takes them."""
    divisors = np.array(rotary.divisors, np.float32)
    if not rotary.divisors:
        return {}, {}
    if rotary.magnitude == 1 and len(set(rotary.divisors)) == 1:
        return {"rope.scaling.type": "linear", "rope.scaling.factor": rotary.divisors[0]}, {}
    rule = model.config.get("rope_parameters") or model.config.get("rope_scaling")
    if isinstance(rule, Mapping) and rule.get("rope_type", rule.get("type")) == "yarn":
        return _yarn(rule, rotary, model.spec), {}
    if LONG_FACTORS in row.factors:
        # The decoder has one set of divisors; readers that choose by length find it under both names.
        keys: dict[str, Value] = {"rope.scaling.attn_factor": rotary.magnitude}
        original = model.config.get("original_max_position_embeddings")
        if isinstance(original, int):
            keys["rope.scaling.original_context_length"] = original
        return keys, {LONG_FACTORS: divisors, SHORT_FACTORS: divisors}
    if ROPE_FACTORS in row.factors and rotary.magnitude == 1:
        return {}, {ROPE_FACTORS: divisors}
    return {}, {}


def _yarn(rule: Mapping[str, Any], rotary: Rotary, spec: DecoderSpec) -> dict[str, Value]:
    original = rule.get("original_max_position_embeddings", spec.context_length)
    factor = rule.get("factor", 1.0)
    keys: dict[str, Value] = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": float(factor),
        "rope.scaling.original_context_length": int(original),
    }
    for name in ("beta_fast", "beta_slow"):
        if name in rule:
            keys[f"rope.scaling.yarn_{name}"] = float(rule[name])
    usual = 0.1 * float(np.log(factor)) + 1 if factor > 1 else 1.0
    if not isclose(rotary.magnitude, usual, rel_tol=_FLOAT32):
        keys["rope.scaling.attn_factor"] = rotary.magnitude / usual
    return keys


def _plain(value: Any, spec: DecoderSpec) -> Any:
    """A field in a form that equal decoders share."""
    if isinstance(value, tuple):
        wide = [
            replace(layer, window=0) if layer.window >= spec.context_length else layer
            for layer in value * (spec.num_hidden_layers if len(value) == 1 else 1)
        ]
        return tuple(wide)
    return value


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, float) and isinstance(theirs, float):
        return isclose(ours, theirs, rel_tol=_FLOAT32)
    if is_dataclass(ours) and type(ours) is type(theirs):
        return all(_same(getattr(ours, field.name), getattr(theirs, field.name)) for field in fields(ours))
    if isinstance(ours, tuple) and isinstance(theirs, tuple):
        return len(ours) == len(theirs) and all(_same(a, b) for a, b in zip(ours, theirs, strict=True))
    return bool(ours == theirs)


def _short(ours: Any, theirs: Any, name: str = "") -> str:
    """The first thing that differs: `layer 3, window 64 (it would be read as 0)`."""
    if isinstance(ours, tuple) and isinstance(theirs, tuple) and len(ours) == len(theirs):
        what = "entry" if name else "layer"
        index = next(index for index, (a, b) in enumerate(zip(ours, theirs, strict=True)) if not _same(a, b))
        return _short(ours[index], theirs[index], f"{name}, {what} {index}".removeprefix(", "))
    if is_dataclass(ours) and type(ours) is type(theirs):
        field = next(
            field.name for field in fields(ours) if not _same(getattr(ours, field.name), getattr(theirs, field.name))
        )
        return _short(getattr(ours, field), getattr(theirs, field), f"{name}, {field}".removeprefix(", "))
    return f"{name} {_word(ours)} (it would be read as {_word(theirs)})".strip()


def _word(value: Any) -> str:
    return f"{str(value)!r:.60}" if isinstance(value, str) else f"{value!r:.60}"
