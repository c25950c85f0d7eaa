"""Every matrix of a package against the floats that it came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from bitnet_onnx.activations import quantize_activations
from bitnet_onnx.converters._scaling import Scaling
from bitnet_onnx.converters.model import Tensors
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.metrics import Error, cosine, max_error, sparsity
from bitnet_onnx.quantized import FloatArray

#: Called as it goes: what is done now, how many steps of it, of how many.
Progress = Callable[[str, int, int], None]

#: Weights worked on at once.
_PART: Final = 1 << 23


@dataclass(frozen=True, slots=True)
class LayerQuality:
    """One matrix.

    Attributes:
        role: `layers.0.attn.q_proj`.
        shape: `(N, K)`.
        weights: its precision, as the manifest has it.
        group_size: columns that share a scale; 0 for one scale a row or a tensor.
        activation_bits: of its input.
        method: how it was quantized, as the manifest has it.
        bits_per_weight: with scales.
        sqnr: of the weights, in decibels; infinite where they are exact.
        cosine: of the weights.
        max_error: of the weights.
        sparsity: share of weights that are exactly zero.
        output_error: relative error of its output on the inputs of the float model, activations rounded as the package
            does; None where no input was seen.
    """

    role: str
    shape: tuple[int, int]
    weights: str
    group_size: int
    activation_bits: int
    method: str
    bits_per_weight: float
    sqnr: float
    cosine: float
    max_error: float
    sparsity: float
    output_error: float | None


def measure_layers(
    spec: DecoderSpec,
    source: Tensors,
    package: Tensors,
    records: Mapping[str, Mapping[str, object]],
    inputs: Mapping[str, FloatArray],
    scaling: Scaling,
    progress: Progress,
) -> Iterator[LayerQuality]:
    """Compare all matrices, one at a time, a few rows at a time.

    Args:
        spec: of both.
        source: the floats.
        package: what became of them.
        records: of the manifest, by role.
        inputs: float `[T, K]` of the source's layers, by role.
        scaling: of the inputs before the package was made; both sides are compared behind it.
        progress: called after each.
    """
    matrices, source = list(spec.matrices()), scaling.tensors(source)
    for index, (role, (rows, columns)) in enumerate(matrices):
        record = records.get(role, {})
        bits = int(str(record.get("activation_bits", 0)))
        x, scale = inputs.get(role), scaling.of(role)
        if x is not None and scale is not None:
            x = x / scale
        rounded = x
        if x is not None and bits and package.quantized(role) is not None:
            codes, scale = quantize_activations(x, bits)
            rounded = (codes / scale[:, None]).astype(np.float32)
        weights, outputs = Error(), Error()
        largest = 0.0
        zeros = product = own = other = 0.0
        step = max(1, _PART // columns)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            exact, ours = (tensors.read_rows(f"{role}.weight", start, stop) for tensors in (source, package))
            weights.add(exact, ours)
            largest = max(largest, max_error(exact, ours))
            zeros += sparsity(ours) * ours.size
            squares = [float(np.linalg.norm(part.astype(np.float64))) ** 2 for part in (exact, ours)]
            product += cosine(exact, ours) * (squares[0] * squares[1]) ** 0.5
            own, other = own + squares[0], other + squares[1]
            if x is not None and rounded is not None:
                outputs.add(x @ exact.T, rounded @ ours.T)
        yield LayerQuality(
            role=role,
            shape=(rows, columns),
            weights=str(record.get("weights", "")),
            group_size=int(str(record.get("group_size", 0))),
            activation_bits=bits,
            method=str(record.get("method", "")),
            bits_per_weight=float(str(record.get("bits_per_weight", 32))),
            sqnr=weights.sqnr,
            cosine=product / (own * other) ** 0.5 if own and other else float(own == other),
            max_error=largest,
            sparsity=zeros / (rows * columns),
            output_error=None if x is None else outputs.relative,
        )
        progress("layers", index + 1, len(matrices))
