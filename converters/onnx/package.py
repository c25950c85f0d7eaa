"""The package directory: graph, data, tokenizer, and the manifests of everyone who opens it."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import onnx_ir as ir

from bitnet_onnx.converters.model import SourceModel
from bitnet_onnx.converters.onnx._data_file import DataFile
from bitnet_onnx.converters.onnx._emitter import Emitter
from bitnet_onnx.converters.onnx._engine import restrict_logits
from bitnet_onnx.converters.onnx._genai import genai_config
from bitnet_onnx.converters.onnx._head_layout import head_size
from bitnet_onnx.converters.onnx._linear_layers import LinearLayers
from bitnet_onnx.converters.onnx._linears import LayerRecord
from bitnet_onnx.converters.onnx._space import check_space
from bitnet_onnx.converters.onnx._tokenizer_file import compact_tokenizer
from bitnet_onnx.converters.onnx.bodies import Fallback
from bitnet_onnx.converters.onnx.decoder import DecoderEmitter
from bitnet_onnx.converters.onnx.forms.bitnet import BitnetForm
from bitnet_onnx.converters.onnx.forms.form import OperatorForm
from bitnet_onnx.converters.onnx.forms.standard import StandardForm
from bitnet_onnx.converters.onnx.forms.stock import StockForm
from bitnet_onnx.decoder import MANIFEST_SIZES
from bitnet_onnx.package_format import (
    CONFIG,
    ENGINE,
    FORMAT_VERSION,
    GENAI_CONFIG,
    GENERATION_CONFIG,
    MANIFEST,
    MODEL,
    MODEL_DATA,
    OPERATOR_DOMAIN,
    OPERATOR_VERSION,
    POLICY,
    TOKENIZER,
    TOKENIZER_CONFIG,
    Operators,
)
from bitnet_onnx.policy import Policy
from bitnet_onnx.policy_file import policy_text
from bitnet_onnx.quantization.statistics import Calibration

#: onnxruntime-genai allocates the cache for this many positions unless told otherwise.
_GENAI_LENGTH: Final = 2048

_POLICY_COMMENT: Final = "What {} was converted with; edited, `bitnet-onnx convert --policy` takes it."

_log = logging.getLogger(__name__)

#: Called after each matrix: how many weights are done, how many there are, and what became of the last matrix.
Progress = Callable[[int, int, LayerRecord], None]


def write_package(
    work: Path,
    model: SourceModel,
    *,
    policy: Policy,
    fallback: Fallback,
    operators: Operators = Operators.BITNET,
    calibration: Calibration | None = None,
    scaled_inputs: int = 0,
    progress: Progress | None = None,
) -> tuple[LayerRecord, ...]:
    """Write every file of a package into an empty directory and return the records of its matrices.

    Raises:
        PackageError: it does not fit on the disk.
    """
    layers: list[LayerRecord] = []
    spec = model.spec
    done, total = 0, sum(math.prod(shape) for _, shape in spec.matrices())

    def record(layer: LayerRecord) -> None:
        nonlocal done
        layers.append(layer)
        done += math.prod(layer.shape)
        _log.debug("%s: %s, relative error %.4f", layer.role, layer.weights, layer.relative_error)
        if progress is not None:
            progress(done, total, layer)

    check_space(work, spec, model.tensors, policy)
    with DataFile(work / MODEL_DATA) as data:
        form = _form(Emitter(data), operators, fallback)
        linears = LinearLayers(spec, model.tensors, policy, form, record, calibration)
        hidden = DecoderEmitter(spec, model.tensors, linears, form).run()
    graph = form.model(tool_version())
    ir.save(graph, work / MODEL)
    restrict_logits(graph, hidden)
    ir.save(graph, work / ENGINE)
    # The runtimes read both files; a tokenizer that is complete in the first may come without the second.
    for name, content in {TOKENIZER_CONFIG: b"{}\n", **model.tokenizer}.items():
        (work / name).write_bytes(compact_tokenizer(content) if name == TOKENIZER else content)
    max_length = min(spec.context_length, _GENAI_LENGTH)
    documents: dict[str, Mapping[str, object]] = {
        CONFIG: model.config,
        GENERATION_CONFIG: model.generation_config,
        GENAI_CONFIG: genai_config(spec, model.generation_config, max_length=max_length),
        MANIFEST: _manifest(model, tuple(layers), _operator(graph, operators, fallback), scaled_inputs),
    }
    for name, document in documents.items():
        (work / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    (work / POLICY).write_text(policy_text(policy, _POLICY_COMMENT.format(model.name)), encoding="utf-8")
    return tuple(layers)


def bits_per_weight(layers: tuple[LayerRecord, ...]) -> float:
    """Mean bits of a weight over matrices of different sizes."""
    weights = sum(layer.shape[0] * layer.shape[1] for layer in layers)
    return sum(layer.shape[0] * layer.shape[1] * layer.bits_per_weight for layer in layers) / max(weights, 1)


def tool_version() -> str:
    """This package's version, as installed."""
    try:
        return version("bitnet-onnx")
    except PackageNotFoundError:
        return "0+unknown"


def _form(emitter: Emitter, operators: Operators, fallback: Fallback) -> OperatorForm:
    match operators:
        case Operators.BITNET:
            return BitnetForm(emitter, fallback)
        case Operators.STOCK:
            return StockForm(emitter)
        case Operators.STANDARD:
            return StandardForm(emitter)


def _operator(graph: ir.Model, operators: Operators, fallback: Fallback) -> dict[str, object]:
    """What the manifest says of the operators."""
    if operators is Operators.BITNET:
        return {"domain": OPERATOR_DOMAIN, "version": OPERATOR_VERSION, "fallback": str(fallback)}
    return {"form": str(operators), "version": OPERATOR_VERSION, "opsets": dict(graph.opset_imports)}


def _manifest(
    model: SourceModel, layers: tuple[LayerRecord, ...], operator: Mapping[str, object], scaled_inputs: int
) -> dict[str, object]:
    spec = model.spec
    # Nodes of our operators have the zero point as an attribute.
    bitnet = "form" not in operator
    return {
        "format_version": FORMAT_VERSION,
        "tool_version": tool_version(),
        "source": {"name": model.name, "format": model.format, "sha256": model.sha256()},
        "architecture": {
            "family": spec.family,
            **{name: getattr(spec, name) for name in MANIFEST_SIZES},
            # Of the cache.
            "head_dim": head_size(spec),
            "context_length": spec.context_length,
        },
        "operator": operator,
        "summary": {
            "bits_per_weight": round(bits_per_weight(layers), 4),
            "parameters": sum(layer.shape[0] * layer.shape[1] for layer in layers),
            "scaled_inputs": scaled_inputs,
        },
        "layers": [
            {
                "role": layer.role,
                "shape": list(layer.shape),
                "weights": str(layer.weights),
                "group_size": layer.group_size,
                "activation_bits": layer.activation_bits,
                "bits_per_weight": round(layer.bits_per_weight, 4),
                "relative_error": round(layer.relative_error, 6),
                "method": layer.method,
                **({} if bitnet else {"zero_point": layer.zero_point}),
            }
            for layer in layers
        ],
    }
