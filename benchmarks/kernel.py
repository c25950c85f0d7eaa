"""How fast is BitLinear by itself, against ONNX Runtime's own operators and against the machine's limits?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from bitnet_onnx.benchmarks._graphs import INT8, Float, Kind, MatMulNBits, Ours, Shape, open_graph, write_graph
from bitnet_onnx.benchmarks.machine import physical_cores
from bitnet_onnx.benchmarks.results import OURS, Comparison, Report
from bitnet_onnx.benchmarks.roofline import BUFFER_BYTES, Meter, Roofline, roofline_path
from bitnet_onnx.benchmarks.timing import Samples, interleave, timed
from bitnet_onnx.errors import OperatorError
from bitnet_onnx.policy import HEAD_ACTIVATION_BITS
from bitnet_onnx.quantized import TERNARY
from bitnet_onnx.runtime.devices import Device, auto_select_device

#: q/k/v, o, gate/up and down of BitNet b1.58 2B4T, merged as the emitter merges them; and its vocabulary head.
BODY = (Shape(3840, 2560), Shape(2560, 2560), Shape(13824, 2560), Shape(2560, 6912))
HEAD = Shape(128256, 2560)
BODY_KINDS: tuple[Kind, ...] = (Ours(TERNARY), Float(), MatMulNBits(2, 64), MatMulNBits(4, 32))
HEAD_KINDS: tuple[Kind, ...] = (Ours(INT8, HEAD_ACTIVATION_BITS), Float(), MatMulNBits(8, 32), MatMulNBits(4, 32))
#: A candidate's weights at most; a layer more often than that fits is timed in fewer copies and scaled up.
_MAX_BYTES = 3 << 29

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class KernelSettings:
    """What to measure.

    Attributes:
        body: layers of one block, ternary.
        layers: blocks of the body; together they must be larger than the caches.
        head: vocabulary head, int8, or None.
        prefill_tokens: tokens of the prefill cases.
        single_bytes: weights of the cases that repeat one shape, in our encoding.
        threads: thread counts, one after the other.
        rounds: interleaved rounds.
        buffer_bytes: what the bandwidth is measured over.
    """

    body: tuple[Shape, ...] = BODY
    layers: int = 30
    head: Shape | None = HEAD
    prefill_tokens: int = 128
    single_bytes: int = 128 << 20
    threads: tuple[int, ...] = ()
    rounds: int = 9
    buffer_bytes: int = BUFFER_BYTES

    def quick(self) -> KernelSettings:
        """The same on tiny shapes: whether everything works, not how fast it is."""
        return KernelSettings(
            body=(Shape(192, 128), Shape(128, 192)),
            layers=2,
            head=Shape(320, 128),
            prefill_tokens=8,
            single_bytes=1 << 14,
            threads=self.threads,
            rounds=2,
            buffer_bytes=4 << 20,
        )


@dataclass(frozen=True, slots=True)
class _Case:
    """`repeat` times `shapes` with `tokens` tokens; reported as a whole, or for one copy."""

    name: str
    kinds: tuple[Kind, ...]
    shapes: tuple[Shape, ...]
    repeat: int
    tokens: int
    report_copies: int

    def copies(self, kind: Kind) -> int:
        """How many copies of `shapes` a candidate is timed on."""
        fitting = _MAX_BYTES // sum(kind.weight_bytes(shape) for shape in self.shapes)
        return max(1, min(self.repeat, fitting))

    def limit(self, roofline: Roofline) -> float:
        """Seconds that the machine needs for what is reported."""
        ours = next(kind for kind in self.kinds if kind.name == OURS)
        weight_bytes = sum(ours.weight_bytes(shape) for shape in self.shapes) * self.report_copies
        # An int8 weight is one operand of a product like any other: its bits cost bytes, not products.
        return roofline.seconds(weight_bytes, self.multiply_adds)

    @property
    def multiply_adds(self) -> int:
        """Of what is reported."""
        return sum(shape.weights for shape in self.shapes) * self.report_copies * self.tokens


def measure(settings: KernelSettings, progress: Progress = lambda _: None) -> Report:
    """Measure all cases, peers in the same rounds.

    Raises:
        OperatorError: there is no operator library to measure.
    """
    device = auto_select_device()
    if device.operator_library is None:
        raise OperatorError("there is no operator library to measure: reinstall with a C++17 compiler present")
    path = roofline_path()
    meter = None if path is None else Meter(path, settings.buffer_bytes)
    comparisons, limits = [], []
    for threads in settings.threads or tuple(sorted({1, physical_cores()})):
        best: Roofline | None = None
        timings: list[tuple[_Case, dict[str, Samples]]] = []
        for case in _cases(settings):
            progress(f"{case.name}, {threads} threads")
            # Before every case: the machine's quietest moment counts.
            best = best if meter is None else meter.measure(threads).best(best)
            timings.append((case, _run(case, device, threads, settings.rounds)))
        for case, samples in timings:
            limit = None if best is None else case.limit(best)
            comparisons.append(Comparison(case.name, threads, samples, multiply_adds=case.multiply_adds, limit_s=limit))
        limits += [] if best is None else [best.as_dict()]
    notes = ["Every candidate runs once a round, in turn; ratios are medians over rounds of neighbouring runs."]
    notes += _scaled_notes(settings)
    if meter is None:
        notes.append("The limits of the machine are unknown: their library was not built.")
    return Report("kernel", asdict(settings), tuple(comparisons), {"roofline": limits}, tuple(notes))


def _cases(settings: KernelSettings) -> Iterator[_Case]:
    body, layers, prefill = settings.body, settings.layers, settings.prefill_tokens
    yield _Case(f"decode body, {layers} layers", BODY_KINDS, body, layers, 1, layers)
    # Prefill reuses each weight for every token: two blocks are enough to tell.
    yield _Case(f"prefill body, {layers} layers", BODY_KINDS, body, min(2, layers), prefill, layers)
    if settings.head is not None:
        yield _Case(f"decode head {settings.head} int8", HEAD_KINDS, (settings.head,), 1, 1, 1)
    for shape in dict.fromkeys(body):
        repeat = max(1, settings.single_bytes // Ours(TERNARY).weight_bytes(shape))
        yield _Case(f"decode {shape}", BODY_KINDS, (shape,), repeat, 1, 1)
        yield _Case(f"prefill {shape}", BODY_KINDS, (shape,), 2, prefill, 1)


def _run(case: _Case, device: Device, threads: int, rounds: int) -> dict[str, Samples]:
    with tempfile.TemporaryDirectory(prefix="bitnet-onnx-", ignore_cleanup_errors=True) as folder:
        sessions, factors = {}, {}
        for index, kind in enumerate(case.kinds):
            place = Path(folder, str(index))
            place.mkdir()
            copies = case.copies(kind)
            sessions[kind.name] = open_graph(write_graph(place, kind, case.shapes, copies), device, threads)
            factors[kind.name] = case.report_copies / copies
        inputs = _inputs(case.shapes, case.tokens)
        candidates = {name: timed(_call(session, inputs)) for name, session in sessions.items()}
        measured = interleave(candidates, rounds=rounds, warm_up=2)
    return {name: samples.scaled(factors[name]) for name, samples in measured.items()}


def _inputs(shapes: Sequence[Shape], tokens: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {f"X{width}": rng.standard_normal((tokens, width), np.float32) for width in {s.columns for s in shapes}}


def _call(session: ort.InferenceSession, inputs: dict[str, np.ndarray]) -> Callable[[], object]:
    return lambda: session.run(None, inputs)


def _scaled_notes(settings: KernelSettings) -> Iterator[str]:
    for case in _cases(settings):
        scaled = [f"{kind.name} on {case.copies(kind)}" for kind in case.kinds if case.copies(kind) != case.repeat]
        if scaled or case.repeat < case.report_copies:
            rest = f" ({', '.join(scaled)})" if scaled else ""
            yield f"{case.name}: timed on {case.repeat} copies of the weights{rest}, scaled to {case.report_copies}."
