"""Scales of features between a norm or layer and the layers behind it: the same model, easier to round.

`bitnet_onnx.quantization.preparation.scaling` finds them; here they are put where they cancel out, and kept beside the
package, so that its weights can still be compared with those of the source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from bitnet_onnx.converters.checkpoints._files import read_small
from bitnet_onnx.converters.model import SourceModel, Tensors
from bitnet_onnx.decoder import ATTENTION_INPUTS, DecoderSpec, NormPlacement, Residual
from bitnet_onnx.errors import InputError, PackageError
from bitnet_onnx.package_format import SCALING
from bitnet_onnx.policy import Policy, Weights
from bitnet_onnx.quantization.preparation.scaling import find_scaling
from bitnet_onnx.quantization.statistics import Calibration, InputStatistics
from bitnet_onnx.quantized import FloatArray, QuantizedTensor
from bitnet_onnx.ternary import TernaryRows

#: Rows of each matrix that the search looks at: more tell the same.
_ROWS: Final = 192
_PROBE: Final = 4
#: Floats read at once.
_PART: Final = 1 << 24
_MAX_FILE_BYTES: Final = 1 << 28
#: The search stays within a thousand.
_MAX_FACTOR: Final = 1e4


@dataclass(frozen=True, slots=True)
class Place:
    """Where the scales of one input go.

    Attributes:
        name: of the input: the first layer that reads it.
        readers: the layers that read it; their columns are multiplied.
        norm: the norm that gives it and is divided, or empty.
        writer: the layer that gives it and whose rows are divided, or empty.
        sources: which of the writer's rows gives each feature; `[K]`. Empty for a norm: they are the same.
    """

    name: str
    readers: tuple[str, ...]
    norm: str = ""
    writer: str = ""
    sources: tuple[int, ...] = ()


def places(spec: DecoderSpec) -> Iterator[Place]:
    """All inputs of a decoder that can be scaled without changing it."""
    if spec.linear_norm_epsilon is not None:
        return  # every layer norms its own input
    normed = spec.placement in {NormPlacement.INPUT, NormPlacement.BOTH} and spec.norm_affine
    group = spec.num_attention_heads // spec.num_key_value_heads
    heads = [head // group for head in range(spec.num_attention_heads)]
    values = tuple(head * spec.head_dim + feature for head in heads for feature in range(spec.head_dim))
    for index in range(spec.num_hidden_layers):
        layer = f"layers.{index}"
        attention = tuple(f"{layer}.attn.{name}" for name in ATTENTION_INPUTS)
        mlp = tuple(f"{layer}.mlp.{name}" for name in spec.mlp_inputs)
        if normed and spec.residual is Residual.PARALLEL_SHARED_NORM:
            yield Place(attention[0], (*attention, *mlp), norm=f"{layer}.input_norm")
        elif normed:
            yield Place(attention[0], attention, norm=f"{layer}.input_norm")
            yield Place(mlp[0], mlp, norm=f"{layer}.post_attention_norm")
        if not spec.attention_sub_norm:
            output = f"{layer}.attn.o_proj"
            yield Place(output, (output,), writer=attention[2], sources=values)
        if spec.gated and not spec.mlp_sub_norm:
            down = f"{layer}.mlp.down_proj"
            same = tuple(range(spec.intermediate_size))
            yield Place(down, (down,), writer=f"{layer}.mlp.up_proj", sources=same)


class Scaling:
    """The scales of some inputs.

    Args:
        spec: of the decoder.
        scales: float32 `[K]` by the name of their place.

    Raises:
        PackageError: a name is no place of this decoder, or its scales are of another size or out of range.
    """

    def __init__(self, spec: DecoderSpec, scales: Mapping[str, FloatArray]) -> None:
        self.scales = dict(scales)
        self._columns: dict[str, FloatArray] = {}
        self._rows: dict[str, FloatArray] = {}
        known = {place.name: place for place in places(spec)}
        shapes = dict(spec.matrices())
        for name, scale in scales.items():
            place = known.get(name)
            expected = None if place is None else (shapes[place.readers[0]][1],)
            if place is None or scale.shape != expected or scale.dtype != np.float32:
                known_as = "no input of this decoder" if expected is None else f"expected float32{list(expected)}"
                raise PackageError(f"{SCALING}: {name!r:.80} is {scale.dtype}{list(scale.shape)}, {known_as}")
            if not ((scale >= 1 / _MAX_FACTOR) & (scale <= _MAX_FACTOR)).all():
                raise PackageError(
                    f"{SCALING}: {name!r:.80} has scales from {scale.min()} to {scale.max()}, "
                    f"expected {1 / _MAX_FACTOR:g} to {_MAX_FACTOR:g}"
                )
            self._columns |= dict.fromkeys(place.readers, scale)
            if place.norm:
                self._rows[place.norm] = scale
            else:
                # Features of one row share a scale, whichever of them is asked.
                rows = np.ones(shapes[place.writer][0], np.float32)
                rows[list(place.sources)] = scale
                if not np.array_equal(rows[list(place.sources)], scale):
                    raise PackageError(
                        f"{SCALING}: {name!r:.80} has different scales for one feature of {place.writer}"
                    )
                self._rows[place.writer] = rows

    def of(self, role: str) -> FloatArray | None:
        """What the columns of a layer are multiplied with and its inputs divided by, `[K]`, or None."""
        return self._columns.get(role)

    def tensors(self, tensors: Tensors) -> Tensors:
        """The tensors of the scaled decoder."""
        return _ScaledTensors(tensors, self._columns, self._rows) if self.scales else tensors

    def calibration(self, calibration: Calibration) -> Calibration:
        """The statistics of the scaled decoder."""
        return _ScaledCalibration(calibration, self._columns) if self.scales else calibration

    def save(self, folder: Path) -> None:
        """Write the file of a package; nothing where there are no scales."""
        if self.scales:
            save_file(self.scales, folder / SCALING)

    @classmethod
    def open(cls, folder: Path, spec: DecoderSpec) -> Self:
        """The scales of a package; none where it has no file of them.

        Raises:
            PackageError: the file is broken, or of another decoder.
        CheckpointError: it is no file of the folder, or too large.
        """
        path = folder / SCALING
        data = read_small(folder, SCALING, max_bytes=_MAX_FILE_BYTES)
        try:
            return cls(spec, {} if data is None else load(data))
        except PackageError as error:
            raise PackageError(f"{folder}: {error}") from None
        except (SafetensorError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise PackageError(f"{path}: not a safetensors file: {' '.join(str(error).split()):.200}") from None


def search_scaling(
    spec: DecoderSpec,
    tensors: Tensors,
    policy: Policy,
    calibration: Calibration,
    progress: Callable[[int, int], None] | None = None,
) -> Scaling:
    """The scales with which the layers that are going to be rounded lose less.

    Args:
        spec: of the decoder.
        tensors: its weights.
        policy: what they will be rounded to.
        calibration: what is known of their inputs.
        progress: called after each input: how many are done, and how many there are.

    Raises:
        CheckpointError: the weights cannot be read.
        InputError: the statistics are of another model.
    """
    scales: dict[str, FloatArray] = {}
    all_places = list(places(spec))
    for index, place in enumerate(all_places):
        statistics = calibration.of(place.name)
        if statistics is not None and len(statistics.sample) and _all_rounded(tensors, policy, place):
            precision = policy.precision(place.name)
            try:
                found = find_scaling(
                    [_some_rows(tensors, f"{role}.weight") for role in place.readers],
                    statistics,
                    precision.grid,
                    activation_bits=precision.activation_bits,
                    shared=np.array(place.sources) if place.sources else None,
                )
            except InputError as error:
                raise InputError(f"{place.name}: {error}") from None
            if (found != 1).any():
                scales[place.name] = found
        if progress is not None:
            progress(index + 1, len(all_places))
    return Scaling(spec, scales)


def scale_inputs(
    model: SourceModel,
    policy: Policy,
    calibration: Calibration,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[SourceModel, Calibration, int]:
    """Search scales, keep them in a folder, and give the model and its inputs with them, and how many there are.

    Raises:
        InputError: the calibration is of another model.
    """
    found = search_scaling(model.spec, model.tensors, policy, calibration, progress)
    # Who compares the weights with the source's needs them.
    found.save(folder)
    scaled = replace(model, tensors=found.tensors(model.tensors))
    return scaled, found.calibration(calibration), len(found.scales)


def _some_rows(tensors: Tensors, name: str) -> FloatArray:
    """Rows of a matrix, spread evenly; the whole is never in memory."""
    rows, columns = tensors.shape(name)
    stride = -(-rows // _ROWS)
    step = max(1, _PART // (stride * columns)) * stride
    parts = [tensors.read_rows(name, start, min(start + step, rows))[::stride] for start in range(0, rows, step)]
    return np.concatenate(parts)


def _all_rounded(tensors: Tensors, policy: Policy, place: Place) -> bool:
    """Whether all readers are floats that become integers, and the writer is neither ternary nor kept as it is."""
    roles = [*place.readers, *([place.writer] if place.writer else [])]
    chosen = {role: policy.precision(role).of_floats for role in roles}
    if Weights.TERNARY in chosen.values() or any(chosen[role] is Weights.FLOAT32 for role in place.readers):
        return False
    return not any(_is_kept(tensors, role) for role in roles)


def _is_kept(tensors: Tensors, role: str) -> bool:
    """Whether a matrix is stored in codes, or is ternary."""
    if tensors.is_master(role) or tensors.quantized(role) is not None:
        return True
    head = tensors.read_rows(f"{role}.weight", 0, min(_PROBE, tensors.shape(f"{role}.weight")[0]))
    return bool(head.any()) and TernaryRows(*head.shape).add(0, head)


class _ScaledTensors:
    """Tensors of a decoder whose inputs are scaled."""

    def __init__(self, tensors: Tensors, columns: Mapping[str, FloatArray], rows: Mapping[str, FloatArray]) -> None:
        self._tensors = tensors
        self._columns = columns
        self._rows = rows

    def shape(self, role: str) -> tuple[int, ...]:
        return self._tensors.shape(role)

    def read(self, role: str) -> FloatArray:
        values = self._tensors.read(role)
        return self._scaled(role, values, 0, len(values))

    def read_rows(self, role: str, start: int, stop: int) -> FloatArray:
        return self._scaled(role, self._tensors.read_rows(role, start, stop), start, stop)

    def quantized(self, role: str) -> QuantizedTensor | None:
        return None if role in self._columns or role in self._rows else self._tensors.quantized(role)

    def is_master(self, role: str) -> bool:
        return self._tensors.is_master(role)

    def _scaled(self, name: str, values: FloatArray, start: int, stop: int) -> FloatArray:
        role, kind = name.rsplit(".", 1)
        rows, columns = self._rows.get(role), self._columns.get(role)
        if rows is None and columns is None:
            return values
        result: npt.NDArray[np.float32] = values
        with np.errstate(over="ignore"):
            if rows is not None:
                part = rows[start:stop]
                result = result / (part[:, None] if values.ndim == 2 else part)
            if columns is not None and kind == "weight":
                result = result * columns
        if not np.isfinite(result).all():
            raise PackageError(f"{name}: scaled by the file {SCALING} it leaves the range of float32")
        return result


class _ScaledCalibration:
    """Statistics of a decoder whose inputs are scaled."""

    def __init__(self, calibration: Calibration, columns: Mapping[str, FloatArray]) -> None:
        self._calibration = calibration
        self._columns = columns

    def of(self, role: str) -> InputStatistics | None:
        statistics, scale = self._calibration.of(role), self._columns.get(role)
        return statistics if statistics is None or scale is None else statistics.scaled(scale)
