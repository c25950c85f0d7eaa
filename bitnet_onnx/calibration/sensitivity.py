"""What each precision of each layer does to the model's output, with all others as floats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from bitnet_onnx.calibration._float_session import FloatSession
from bitnet_onnx.calibration._taps import precision_units
from bitnet_onnx.calibration.sensitivity_table import Measured, Unit
from bitnet_onnx.calibration.windows import Sampling, read_windows
from bitnet_onnx.converters.model import open_model
from bitnet_onnx.evaluation.quality._scores import Distribution
from bitnet_onnx.metrics import weighted_error
from bitnet_onnx.policy import HEAD_ACTIVATION_BITS, HEAD_ROLES, Precision, Weights
from bitnet_onnx.quantization.method import MethodName
from bitnet_onnx.quantization.statistics import Calibration, InputStatistics
from bitnet_onnx.quantized import FloatArray, QuantizedTensor
from bitnet_onnx.runtime import Device, auto_select_device
from bitnet_onnx.runtime.tokenizer import TextTokenizer

#: Called after each unit: how many are done, how many there are, and its first layer.
Progress = Callable[[int, int, str], None]

#: Below such a loss (nats a token) it is proportional to the squared error of the layer's output, and finer
#: precisions need no run of their own.
_QUADRATIC: Final = 2e-3


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a layer may become.

    Attributes:
        precision: that is measured.
        others: whose losses follow from it by the squared error of the output.
        method: by which it is quantized for the measurement; None: as in a conversion.
    """

    precision: Precision
    others: tuple[Precision, ...] = ()
    method: MethodName | None = None


#: For layers of the blocks, coarse ones first. Scales of groups are float32: groups of 64 cost half a bit.
CANDIDATES: Final = (
    Candidate(Precision(Weights.TERNARY, 64, method=MethodName.GPTQ), method=MethodName.LEAST_SQUARES),
    Candidate(Precision(Weights.INT2, 64), (Precision(Weights.INT2, 128),)),
    Candidate(
        Precision(Weights.INT4, 64),
        (
            Precision(Weights.INT4, 0),
            Precision(Weights.INT4, 128),
            Precision(Weights.INT4, 32),
            Precision(Weights.INT6, 0),
        ),
    ),
    Candidate(Precision(Weights.INT8, 0), method=MethodName.RTN),
)
#: For the head and the embedding.
HEAD_CANDIDATES: Final = (
    Candidate(
        Precision(Weights.INT4, 64, HEAD_ACTIVATION_BITS),
        (Precision(Weights.INT4, 32, HEAD_ACTIVATION_BITS),),
        MethodName.RTN,
    ),
    Candidate(Precision(Weights.INT6, 0, HEAD_ACTIVATION_BITS), method=MethodName.RTN),
    Candidate(Precision(Weights.INT8, 0, HEAD_ACTIVATION_BITS), method=MethodName.RTN),
)


def measure_sensitivity(
    source: Path,
    texts: Sequence[Path],
    statistics: Calibration,
    *,
    tokens: int = 1024,
    window: int = 256,
    seed: int = 1,
    device: Device | None = None,
    progress: Progress | None = None,
) -> tuple[Unit, ...]:
    """Run the model once for every unit and precision that matters.

    Args:
        source: a checkpoint or a package.
        texts: UTF-8 files.
        statistics: of the same model.
        tokens: that are read for each measurement.
        window: tokens of one window.
        seed: of the places of the windows.
        device: where the model runs.
        progress: called after each unit.

    Raises:
        InputError: the model or a text is not usable.
    """
    with FloatSession.open(source, device or auto_select_device()) as session, open_model(source) as model:
        spec = session.spec
        length = min(window, spec.context_length)
        windows = list(
            read_windows(
                texts,
                TextTokenizer(session.package),
                count=max(1, tokens // length),
                length=length,
                sampling=Sampling.STRATIFIED,
                seed=seed,
            )
        )
        reference = [Distribution.of(session.logits(ids)) for ids in windows]
        units = precision_units(spec)
        found = []
        for index, roles in enumerate(units):
            weights = [model.tensors.read(f"{role}.weight") for role in roles]
            seen = statistics.of(roles[0])

            def loss(tensors: Sequence[QuantizedTensor], roles: tuple[str, ...] = roles) -> float:
                changed = {roles: [tensor.dequantize() for tensor in tensors]}
                return float(
                    np.mean(
                        [
                            floats.divergence(Distribution.of(session.logits(ids, changed))).mean()
                            for ids, floats in zip(windows, reference, strict=True)
                        ]
                    )
                )

            found.append(Unit(roles, sum(w.size for w in weights), _choices(roles, weights, seen, loss)))
            if progress is not None:
                progress(index + 1, len(units), roles[0])
        return tuple(found)


def _choices(
    roles: tuple[str, ...],
    weights: Sequence[FloatArray],
    seen: InputStatistics | None,
    loss: Callable[[Sequence[QuantizedTensor]], float],
) -> tuple[Measured, ...]:
    """All candidates of a unit: measured where that tells more than the error of the output."""
    choices: list[Measured] = []

    def rounded(precision: Precision, method: MethodName | None) -> tuple[list[QuantizedTensor], int, float]:
        by = precision if method is None else replace(precision, method=method)
        tensors = [tensor for weight in weights if (tensor := by.quantize(weight, seen)) is not None]
        bits = sum(round(tensor.bits_per_weight() * tensor.raw.size) for tensor in tensors)
        return tensors, bits, _output_error(weights, tensors, seen)

    for candidate in HEAD_CANDIDATES if roles[0] in HEAD_ROLES else CANDIDATES:
        tensors, bits, error = rounded(candidate.precision, candidate.method)
        last = choices[-1] if choices else None
        if last is not None and last.loss < _QUADRATIC and last.error > 0:
            chosen = Measured(candidate.precision, bits, error, last.loss * (error / last.error) ** 2, measured=False)
        else:
            chosen = Measured(candidate.precision, bits, error, loss(tensors), measured=True)
        # Rounding is quick, and one precision against another by it as by better methods.
        plain = rounded(candidate.precision, MethodName.RTN)[2] if candidate.others else 0.0
        for precision in candidate.others:
            _, size, other = rounded(precision, MethodName.RTN)
            ratio = other / plain if plain > 0 else 1.0
            choices.append(Measured(precision, size, error * ratio, chosen.loss * ratio**2, measured=False))
        choices.append(chosen)
    return tuple(sorted(choices, key=lambda one: (one.bits, one.loss)))


def _output_error(
    weights: Sequence[FloatArray], quantized: Sequence[QuantizedTensor], seen: InputStatistics | None
) -> float:
    """Relative error of the output `W x` over the inputs that were seen, by their second moment."""
    moment = [np.eye(weights[0].shape[1], dtype=np.float32)] if seen is None else seen.moment
    total = sum(weighted_error(weight, moment) for weight in weights)
    lost = sum(
        weighted_error(tensor.dequantize() - weight, moment) for weight, tensor in zip(weights, quantized, strict=True)
    )
    return float(np.sqrt(max(lost, 0.0) / total)) if total > 0 else 0.0
