"""What a Core ML package computes on a Mac, and how fast, beside the same file in numpy.

    python -P benchmarks/coreml_device.py X.mlpackage --out coreml-device.json

For each choice of processors the package reads a prompt in one call, reads it again in several, and goes on greedily
for some hundred tokens: logits are compared with those of the saved program in numpy, calls are timed, and whoever
crashes after a while does so here. It needs macOS 15 or later and coremltools. Nobody has run it on a Mac yet; the
tests run it on numpy.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final, Protocol

import click
import numpy as np
import numpy.typing as npt

from bitnet_onnx.benchmarks.results import Report
from bitnet_onnx.converters.coreml._model import IDS, LOGITS, MASK
from bitnet_onnx.errors import UnsupportedError
from bitnet_onnx.evaluation.mil._subject import Functions
from bitnet_onnx.evaluation.mil.interpreter import Interpreter
from bitnet_onnx.evaluation.mil.package import Package, open_package
from bitnet_onnx.evaluation.validation import made_up
from bitnet_onnx.metrics import relative_error
from bitnet_onnx.quantized import FloatArray

#: Names of coremltools' `ComputeUnit`, by what they are called here.
UNITS: Final[Mapping[str, str]] = {
    "cpu": "CPU_ONLY",
    "gpu": "CPU_AND_GPU",
    "neural-engine": "CPU_AND_NE",
    "all": "ALL",
}
_PROMPT: Final = 5
_GREEDY: Final = 8
_ROOM: Final = 1 << 33


class Running(Protocol):
    """A sequence that a package reads."""

    def read(self, ids: Sequence[int]) -> FloatArray:
        """Logits `[len(ids), vocabulary]` of the next tokens."""
        ...


#: Begins a sequence.
Start = Callable[[], Running]
#: Loads a package for some processors, by the name that coremltools has for them.
Load = Callable[[Package, str], Start]


@dataclass(frozen=True, slots=True)
class Measured:
    """One choice of processors.

    Attributes:
        load_s: seconds until the first sequence could begin, compilation included.
        whole_error: of the logits of a prompt read in one call, relative to numpy's.
        cached_error: the same read in two parts.
        tokens_agree: the first greedy tokens are numpy's.
        prefill_tokens_per_s: of the second reading of a prompt of so many tokens as `prompt`.
        decode_tokens_per_s: by the median of all calls with one token.
        steps: calls with one token.
    """

    load_s: float
    whole_error: float
    cached_error: float
    tokens_agree: bool
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    steps: int


class NumpyRunning:
    """A sequence in numpy; the mask is zeros, as applications send it."""

    def __init__(self, interpreter: Interpreter) -> None:
        self._interpreter = interpreter
        self._functions = Functions.of(interpreter.package)
        self._states = interpreter.states(self._functions.prefill)
        self._length = 0

    def read(self, ids: Sequence[int]) -> FloatArray:
        """See `Running`."""
        function, inputs = self._functions.reading(len(ids)), call(ids, self._length)
        self._length += len(ids)
        run = self._interpreter.run(function, inputs, self._states)
        return np.asarray(run.outputs[LOGITS][0], np.float32)


def load_numpy(package: Package, _: str) -> Start:
    """The saved program in single precision."""
    interpreter = Interpreter(package, room=_ROOM, cache=_ROOM)
    return lambda: NumpyRunning(interpreter)


class CoreMLRunning:
    """A sequence in Core ML."""

    def __init__(self, models: Mapping[str, Any], package: Package) -> None:
        self._models = models
        self._functions = Functions.of(package)
        self._state = models[self._functions.prefill].make_state()
        self._length = 0

    def read(self, ids: Sequence[int]) -> FloatArray:
        """See `Running`."""
        inputs = call(ids, self._length)
        self._length += len(ids)
        model = self._models[self._functions.reading(len(ids))]
        return np.asarray(model.predict(inputs, state=self._state)[LOGITS][0], np.float32)


def load_coreml(package: Package, unit: str) -> Start:
    """Core ML itself.

    Raises:
        UnsupportedError: this is no Mac.
    """
    if sys.platform != "darwin":
        raise UnsupportedError("Core ML runs on macOS only: `bitnet-onnx validate` runs a package in numpy anywhere")
    import coremltools

    units = getattr(coremltools.ComputeUnit, unit)
    functions = list(package.program.functions)
    models = {
        name: coremltools.models.MLModel(
            str(package.path), compute_units=units, function_name=name if len(functions) > 1 else None
        )
        for name in functions
    }
    return lambda: CoreMLRunning(models, package)


def call(ids: Sequence[int], past: int) -> dict[str, npt.NDArray[Any]]:
    """Inputs of a call behind so many tokens."""
    mask = np.zeros((1, 1, len(ids), past + len(ids)), np.float16)
    return {IDS: np.array([ids], np.int32), MASK: mask}


def measure(path: Path, load: Load, units: Sequence[str], *, prompt: int, steps: int) -> dict[str, Measured]:
    """Compare and time a package on each choice of processors.

    Args:
        path: the `.mlpackage`.
        load: see `Load`.
        units: keys of `UNITS`.
        prompt: tokens of the prompt that is timed.
        steps: calls with one token.

    Raises:
        BitnetOnnxError: the package cannot be opened, or not here.
    """
    with open_package(path) as package:
        reference = load_numpy(package, "")
        vocabulary = reference().read([0]).shape[1]
        ids = made_up(_PROMPT, vocabulary)
        expected, chosen = _greedy(reference(), ids, _GREEDY)
        measured = {}
        for name in units:
            begun = time.perf_counter()
            start = load(package, UNITS[name])
            start()
            seconds = time.perf_counter() - begun
            whole, tokens = _greedy(start(), ids, _GREEDY)
            running = start()
            cached = np.concatenate([running.read(ids[:2]), running.read(ids[2:-1]), running.read(ids[-1:])])
            prefill, decode = _timed(start, made_up(prompt, vocabulary), steps)
            measured[name] = Measured(
                load_s=seconds,
                whole_error=relative_error(expected, whole),
                cached_error=relative_error(expected, cached),
                tokens_agree=tokens == chosen,
                prefill_tokens_per_s=prompt / prefill,
                decode_tokens_per_s=1 / decode,
                steps=steps,
            )
    return measured


def _greedy(running: Running, ids: Sequence[int], count: int) -> tuple[FloatArray, list[int]]:
    """Logits of a prompt that is read at once, and the likeliest tokens after it."""
    logits = first = running.read(ids)
    chosen = []
    for _ in range(count):
        chosen.append(int(logits[-1].argmax()))
        logits = running.read(chosen[-1:])
    return first, chosen


def _timed(start: Start, ids: Sequence[int], steps: int) -> tuple[float, float]:
    """Seconds of a prompt that is read for the second time, and of one token."""
    start().read(ids)
    running = start()
    begun = time.perf_counter()
    logits = running.read(ids)
    prefill, seconds = time.perf_counter() - begun, []
    for _ in range(steps):
        begun = time.perf_counter()
        logits = running.read([int(logits[-1].argmax())])
        seconds.append(time.perf_counter() - begun)
    return prefill, median(seconds)


@click.command()
@click.argument("package", type=click.Path(path_type=Path, exists=True))
@click.option("--unit", "units", type=click.Choice(list(UNITS)), multiple=True, help="Only these.  [default: all]")
@click.option("--prompt", default=128, show_default=True, help="Tokens of the prompt that is timed.")
@click.option("--steps", default=300, show_default=True, help="Tokens that are written.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON file to write.")
def main(package: Path, units: tuple[str, ...], prompt: int, steps: int, out: Path) -> None:
    """Run PACKAGE on each kind of processor of a Mac."""
    measured = measure(package, load_coreml, units or tuple(UNITS), prompt=prompt, steps=steps)
    Report(
        benchmark="coreml-device",
        settings={"package": package.name, "prompt": prompt},
        comparisons=(),
        facts={"units": {name: asdict(found) for name, found in measured.items()}},
        notes=("Errors are relative to the saved program in numpy, with single precision.",),
    ).write(out)
    for name, found in measured.items():
        click.echo(
            f"{name}: logits differ by {found.whole_error:.2g} (in parts {found.cached_error:.2g}), "
            f"tokens {'agree' if found.tokens_agree else 'differ'}; prefill {found.prefill_tokens_per_s:.0f}, "
            f"decode {found.decode_tokens_per_s:.1f} tokens/s"
        )


if __name__ == "__main__":
    main()
