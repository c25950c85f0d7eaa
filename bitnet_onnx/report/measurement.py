"""Everything that a report tells, measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from bitnet_onnx.calibration._taps import find_taps
from bitnet_onnx.calibration.collection import float_package
from bitnet_onnx.calibration.sensitivity_table import Unit, search_policy
from bitnet_onnx.calibration.windows import Sampling, read_windows
from bitnet_onnx.converters._scaling import Scaling
from bitnet_onnx.converters.model import open_model
from bitnet_onnx.errors import InputError
from bitnet_onnx.evaluation._context import context_to_open
from bitnet_onnx.evaluation._session import PackageSession, hidden_name, load_graph
from bitnet_onnx.evaluation._weights import recorded_layers
from bitnet_onnx.evaluation.quality import Quality, QualityOptions, evaluate
from bitnet_onnx.metrics import Error
from bitnet_onnx.package_format import MANIFEST
from bitnet_onnx.quantized import FloatArray
from bitnet_onnx.report.layers import LayerQuality, Progress, measure_layers
from bitnet_onnx.runtime import PackageInfo, auto_select_device, select_device
from bitnet_onnx.runtime._json import read_object
from bitnet_onnx.runtime.tokenizer import TextTokenizer

#: Points of the line of size against loss.
_POINTS: Final = 40


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """What is measured.

    Attributes:
        quality: of the evaluation.
        windows: texts that layers are looked at with.
        window: tokens of each.
        sensitivity: of the model's layers, if it was measured.
    """

    quality: QualityOptions = field(default_factory=QualityOptions)
    windows: int = 4
    window: int = 128
    sensitivity: tuple[Unit, ...] = ()


@dataclass(frozen=True, slots=True)
class Measurement:
    """A package against its source.

    Attributes:
        package: its directory.
        source: what it was compared with.
        name: of the source, as the manifest has it.
        family: of the model.
        vocab_size: number of tokens.
        parameters: weights of all matrices.
        bits_per_weight: mean over all matrices, scales included.
        bytes: of graph and data.
        float_bytes: of the same matrices as float32.
        layers: every matrix.
        depth: relative error of the hidden states after each layer; empty for a model that was trained to be ternary.
        quality: what `evaluate` found, with the float model as the reference.
        frontier: bits a weight and the loss (nats a token) that other precisions would give by the sensitivities.
        trained_ternary: the source was trained with ternary weights.
    """

    package: str
    source: str
    name: str
    family: str
    vocab_size: int
    parameters: int
    bits_per_weight: float
    bytes: int
    float_bytes: int
    layers: tuple[LayerQuality, ...]
    depth: tuple[float, ...]
    quality: Quality
    frontier: tuple[tuple[float, float], ...]
    trained_ternary: bool

    def as_dict(self) -> dict[str, object]:
        """For JSON; numbers without a finite value are null."""
        fields = {name: getattr(self, name) for name in self.__slots__ if name not in {"layers", "quality"}}
        return {
            **fields,
            "layers": [
                {key: None if _infinite(value) else value for key, value in asdict(layer).items()}
                for layer in self.layers
            ],
            "quality": self.quality.as_dict(),
        }


def measure(
    package: str | Path,
    source: str | Path,
    texts: Sequence[str | Path],
    options: ReportOptions | None = None,
    *,
    progress: Progress | None = None,
) -> Measurement:
    """Measure what a package lost.

    Args:
        package: the package directory.
        source: what it was made from: a checkpoint or a package.
        texts: UTF-8 files.
        options: what is measured.
        progress: called as it goes.

    Raises:
        InputError: the two are of different models, or a text is not usable.
    """
    options, report = options or ReportOptions(), progress or _silent
    if not texts:
        raise InputError("no text to read: name at least one file")
    info = PackageInfo.open(package)
    manifest = read_object(info.directory / MANIFEST)
    quality = evaluate(
        package,
        texts=texts,
        reference=source,
        options=options.quality,
        progress=report,
    )
    context = context_to_open(Path(source), None, info)
    with open_model(Path(source), context_length=context) as original, open_model(info.directory) as packaged:
        spec = original.spec
        # A model that was trained to be ternary has no float twin whose inside it could be compared with.
        inputs, depth = (
            ({}, ())
            if original.trained_ternary
            else _inside(info, Path(source), context, [Path(text) for text in texts], options, report)
        )
        scaling = Scaling.open(info.directory, spec)
        layers = tuple(
            measure_layers(spec, original.tensors, packaged.tensors, recorded_layers(manifest), inputs, scaling, report)
        )
        trained = original.trained_ternary
    parameters = sum(math.prod(layer.shape) for layer in layers)
    bits = sum(math.prod(layer.shape) * layer.bits_per_weight for layer in layers) / max(parameters, 1)
    described = manifest.get("source")
    return Measurement(
        package=str(info.directory),
        source=str(source),
        name=str(described.get("name", "")) if isinstance(described, dict) else "",
        family=spec.family,
        vocab_size=info.architecture.vocab_size,
        parameters=parameters,
        bits_per_weight=bits,
        bytes=sum(path.stat().st_size for path in info.directory.glob("model.onnx*")),
        float_bytes=4 * parameters,
        layers=layers,
        depth=depth,
        quality=quality,
        frontier=_frontier(options.sensitivity),
        trained_ternary=trained,
    )


def _inside(
    info: PackageInfo,
    source: Path,
    context: int | None,
    texts: Sequence[Path],
    options: ReportOptions,
    report: Progress,
) -> tuple[dict[str, FloatArray], tuple[float, ...]]:
    """Inputs of the float model's linear layers, and the error of the hidden states after each layer."""
    with float_package(source, context_length=context) as (floats, spec):
        taps = find_taps(load_graph(floats.model_path).graph, spec)
        hidden = [hidden_name(spec, layer) for layer in range(spec.num_hidden_layers)]
        original = PackageSession(floats, auto_select_device(), [*(tap.value for tap in taps), *hidden], head=False)
        ours = PackageSession(info, select_device(info.operators), hidden, head=False)
        length = min(options.window, spec.context_length)
        windows = read_windows(
            texts, TextTokenizer(info), count=options.windows, length=length, sampling=Sampling.STRATIFIED
        )
        seen: list[list[FloatArray]] = []
        errors = [Error() for _ in hidden]
        for index, ids in enumerate(windows):
            values, _ = original.trace(ids)
            states, _ = ours.trace(ids)
            seen.append(values[: len(taps)])
            for error, exact, state in zip(errors, values[len(taps) :], states, strict=True):
                error.add(exact, state)
            report("hidden states", index + 1, options.windows)
    joined = [np.concatenate(parts) for parts in zip(*seen, strict=True)]
    inputs = {role: x for tap, x in zip(taps, joined, strict=True) for role in tap.roles}
    return inputs, tuple(error.relative for error in errors)


def _frontier(units: Sequence[Unit]) -> tuple[tuple[float, float], ...]:
    """What the search finds between the smallest and the largest precisions."""
    if not units:
        return ()
    weights = sum(unit.weights for unit in units)
    least, most = (
        sum(choose(choice.bits for choice in unit.choices) for unit in units) / weights for choose in (min, max)
    )
    found = [search_policy(units, bits_per_weight=float(bits)) for bits in np.linspace(least, most, _POINTS)]
    return tuple((one.bits_per_weight, one.loss) for one in found)


def _infinite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _silent(_: str, __: int, ___: int) -> None:
    """No progress."""
