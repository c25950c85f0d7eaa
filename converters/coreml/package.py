"""The bundle of a Core ML package, and the tokenizer's files beside it."""

from __future__ import annotations

import json
import logging
import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bitnet_onnx.converters.coreml._linears import Matrices
from bitnet_onnx.converters.coreml._model import Call, build_program, export_model, function_names
from bitnet_onnx.converters.coreml._tools import Tools, Value, load_tools, quiet
from bitnet_onnx.converters.coreml._weight_file import WeightFile
from bitnet_onnx.converters.coreml.decoder import DecoderEmitter
from bitnet_onnx.converters.coreml.options import CoreMLOptions
from bitnet_onnx.converters.model import SourceModel
from bitnet_onnx.converters.onnx._linears import LayerRecord
from bitnet_onnx.converters.onnx._tokenizer_file import compact_tokenizer
from bitnet_onnx.converters.onnx.package import Progress, tool_version
from bitnet_onnx.decoder import MANIFEST_SIZES, DecoderSpec
from bitnet_onnx.errors import UnsupportedError
from bitnet_onnx.package_format import CONFIG, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG
from bitnet_onnx.policy import Policy
from bitnet_onnx.quantization.statistics import Calibration

TOKENIZER_SUFFIX: Final = ".tokenizer"
_AUTHOR: Final = "com.apple.CoreML"
_MODEL: Final = "model.mlmodel"
_WEIGHTS: Final = "weights"
_BUNDLE_MANIFEST: Final = "Manifest.json"
MODEL_FILE: Final = f"Data/{_AUTHOR}/{_MODEL}"
WEIGHT_FILE: Final = f"Data/{_AUTHOR}/{_WEIGHTS}/weight.bin"

#: Keys of the metadata.
NAME_KEY: Final = "co.huggingface.exporters.name"
MANIFEST_KEY: Final = "com.github.bitnet-onnx.manifest"
_VERSION_KEY: Final = "com.github.apple.coremltools.version"
_MANIFEST_FORMAT: Final = 1

#: Positions of a package whose checkpoint has more and whose user names no number: the whole cache is allocated.
DEFAULT_CONTEXT: Final = 2048
_MAX_STATE_BYTES: Final = 1 << 32
#: More than a program of a thousand layers takes: its weights are in a file of their own.
_MAX_PROGRAM_BYTES: Final = 1 << 27

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Records:
    """What became of the matrices so far."""

    total: int
    progress: Progress | None
    done: int = 0
    layers: list[LayerRecord] = field(default_factory=list)

    def add(self, layer: LayerRecord) -> None:
        self.layers.append(layer)
        self.done += math.prod(layer.shape)
        _log.debug("%s: %s, relative error %.4f", layer.role, layer.weights, layer.relative_error)
        if self.progress is not None:
            self.progress(self.done, self.total, layer)


def write_bundle(
    work: Path,
    model: SourceModel,
    options: CoreMLOptions,
    *,
    policy: Policy,
    calibration: Calibration | None = None,
    scaled_inputs: int = 0,
    progress: Progress | None = None,
) -> tuple[LayerRecord, ...]:
    """Write every file of a package into an empty directory and return the records of its matrices.

    Raises:
        UnsupportedError: the cache would be larger than a state may be.
        InputError: coremltools is not there.
        PackageError: a file cannot be written.
    """
    _check_state(model.spec)
    tools = load_tools()
    records = _Records(sum(math.prod(shape) for _, shape in model.spec.matrices()), progress)
    (work / WEIGHT_FILE).parent.mkdir(parents=True)
    weights = WeightFile(tools, work / WEIGHT_FILE)
    try:
        matrices = Matrices(model.tensors, weights, policy, options.ternary, records.add, calibration)
        with quiet():
            saved = _specification(tools, weights, model, matrices, options)
    finally:
        weights.close()
    layers = tuple(records.layers)
    _describe(saved, _manifest(model, options, layers, scaled_inputs), model.name, tools)
    (work / MODEL_FILE).write_bytes(saved.SerializeToString(deterministic=True))
    (work / _BUNDLE_MANIFEST).write_text(json.dumps(_bundle_manifest(), indent=4) + "\n", encoding="utf-8")
    return layers


def write_tokenizer(work: Path, model: SourceModel) -> None:
    """Write what an application needs besides the package into an empty directory."""
    for name, content in {TOKENIZER_CONFIG: b"{}\n", **model.tokenizer}.items():
        (work / name).write_bytes(compact_tokenizer(content) if name == TOKENIZER else content)
    for name, document in {CONFIG: model.config, GENERATION_CONFIG: model.generation_config}.items():
        (work / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def is_ours(bundle: Path) -> bool:
    """Whether a directory is a package that was written here."""
    try:
        with (bundle / MODEL_FILE).open("rb") as file:
            return MANIFEST_KEY.encode() in file.read(_MAX_PROGRAM_BYTES)
    except OSError:
        return False


def _specification(
    tools: Tools, weights: WeightFile, model: SourceModel, matrices: Matrices, options: CoreMLOptions
) -> Any:
    spec = model.spec

    def emit(call: Call) -> Value:
        emitter = DecoderEmitter(spec, model.tensors, matrices, call.graph)
        return emitter.run(call.ids, call.mask, call.states, single=call.single)

    program = build_program(tools, weights, spec, options.target, emit, split=options.split)
    return export_model(tools, program, weights, options.target)


def _check_state(spec: DecoderSpec) -> None:
    size = 2 * spec.num_hidden_layers * spec.key_value_size * spec.context_length
    if size > _MAX_STATE_BYTES:
        raise UnsupportedError(
            f"context_length is {spec.context_length}: the keys of all layers take {size} bytes, more than the limit "
            f"of {_MAX_STATE_BYTES}; choose a shorter --context"
        )


def _describe(saved: Any, manifest: Mapping[str, object], name: str, tools: Tools) -> None:
    """What an application can ask the package."""
    metadata = saved.description.metadata
    metadata.shortDescription = f"{name}, written by bitnet-onnx {tool_version()}"
    facts = {
        NAME_KEY: name,
        MANIFEST_KEY: json.dumps(manifest, separators=(",", ":")),
        _VERSION_KEY: tools.version,
    }
    for key, value in facts.items():
        metadata.userDefined[key] = value


def _manifest(
    model: SourceModel, options: CoreMLOptions, layers: tuple[LayerRecord, ...], scaled_inputs: int
) -> dict[str, object]:
    spec = model.spec
    return {
        "format": _MANIFEST_FORMAT,
        "tool": f"bitnet-onnx {tool_version()}",
        "sizes": {
            "family": spec.family,
            **{name: getattr(spec, name) for name in MANIFEST_SIZES},
            "head_dim": spec.head_dim,
        },
        "context": spec.context_length,
        "weights": str(options.ternary),
        "target": str(options.target),
        "functions": list(function_names(split=options.split)),
        "scaled_inputs": scaled_inputs,
        "precisions": {
            layer.role: {
                "weights": str(layer.weights),
                "group_size": layer.group_size,
                "activation_bits": layer.activation_bits,
                "relative_error": round(layer.relative_error, 6),
                "shape": list(layer.shape),
                "bits_per_weight": round(layer.bits_per_weight, 4),
                "method": layer.method,
            }
            for layer in layers
        },
        "source": {"name": model.name, "format": model.format, "sha256": model.sha256()},
    }


def _bundle_manifest() -> dict[str, object]:
    entries = {
        _item(name): {"author": _AUTHOR, "description": description, "name": name, "path": f"{_AUTHOR}/{name}"}
        for name, description in ((_WEIGHTS, "CoreML Model Weights"), (_MODEL, "CoreML Model Specification"))
    }
    return {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": _item(_MODEL)}


def _item(name: str) -> str:
    """The same identifier in every package, so that the same input gives the same bytes."""
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{name}.{_AUTHOR}"))
