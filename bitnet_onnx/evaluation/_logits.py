"""The logits of a package against those of the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from bitnet_onnx.converters._package_graph import PackageGraph
from bitnet_onnx.converters._package_tensors import PackageTensors
from bitnet_onnx.converters._scaling import Scaling
from bitnet_onnx.converters.model import SourceModel
from bitnet_onnx.converters.onnx._linear_layers import module_path
from bitnet_onnx.evaluation._linear import SourceRule
from bitnet_onnx.evaluation._operators import LinearNode, check_operators, linear_nodes
from bitnet_onnx.evaluation._report import LayerCheck, LogitCheck, Measure, OperatorCheck, Way
from bitnet_onnx.evaluation._session import PackageSession, hidden_name, load_graph
from bitnet_onnx.evaluation._weights import PackageRule
from bitnet_onnx.evaluation.reference import Forward, Prompt, forward
from bitnet_onnx.metrics import Error, relative_error
from bitnet_onnx.package_format import Operators
from bitnet_onnx.policy import Precision, Weights
from bitnet_onnx.quantized import FloatArray
from bitnet_onnx.runtime import Device, PackageInfo

#: Smallest tolerance.
TOLERANCE: Final = 1e-3
#: A tolerance beyond it is what the reference moves by itself under noise, times this: one noisy run is no bound.
MOVEMENTS: Final = 4.0
#: Smallest relative tolerance where activations are rounded: one noisy run may happen to move none, or few, of the
#: integers. The layers by themselves and the run with floats are what finds a fault.
ROUNDED_TOLERANCE: Final = 0.02
#: The `fast` function bodies round activations in blocks of their own.
FAST_TOLERANCE: Final = 0.05
_NOISE: Final = 1
#: Tokens on which linear layers are taken one by one.
_SHORT: Final = 8

Ids = tuple[int, ...]
#: Called as it goes: what is done now, how many steps of it, of how many.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Subject:
    """A package that is open, and its source.

    Attributes:
        info: its checked directory.
        graph: its tensors by the names of the graph.
        tensors: its weights by role.
        precisions: of its matrices.
        errors: of its matrices, relative, as the manifest records them.
        fallback: which function bodies it has: `fast` or `exact`.
        device: where it runs.
        source: what it was made from.
        scaling: of the inputs of the source's layers, before the package was made.
    """

    info: PackageInfo
    graph: PackageGraph
    tensors: PackageTensors
    precisions: Mapping[str, Precision]
    errors: Mapping[str, float]
    fallback: str
    device: Device
    source: SourceModel
    scaling: Scaling

    @property
    def rounds(self) -> bool:
        """Whether activations are rounded to integers anywhere, as ONNX Runtime does unasked to standard operators."""
        unasked = self.info.operators is Operators.STANDARD
        return any(
            (one.activation_bits or unasked) and one.weights is not Weights.FLOAT32 for one in self.precisions.values()
        )


@dataclass(frozen=True, slots=True)
class _Reference:
    """The reference on each prompt, without and with noise."""

    plain: Sequence[Forward]
    shaken: Sequence[Forward]

    def tolerance(self, measure: Measure) -> float:
        pairs = zip(self.plain, self.shaken, strict=True)
        return MOVEMENTS * max(_distance(measure, one.logits, other.logits) for one, other in pairs)


def check_logits(
    subject: Subject, prompts: Sequence[Ids], layers: Sequence[int], progress: Progress
) -> tuple[tuple[LogitCheck, ...], tuple[LayerCheck, ...]]:
    """Every prompt in every way, and the hidden states after `layers`."""
    origins, checks = _origins(subject, prompts, progress)
    exact: Sequence[float] = ()
    if subject.rounds:
        reference = _reference(subject, prompts, layers, progress, floats=True)
        found, states = _whole(subject, prompts, layers, floats=True)
        tolerance = max(TOLERANCE, reference.tolerance(Measure.DIFFERENCE))
        checks += _compared(Way.FLOATS, Measure.DIFFERENCE, tolerance, reference.plain, found, origins)
        exact = [error.relative for error in _errors(layers, reference.plain, states)]
    measure = Measure.RELATIVE if subject.rounds else Measure.DIFFERENCE
    reference = _reference(subject, prompts, layers, progress, floats=False)
    found, states = _whole(subject, prompts, layers, floats=False)
    tolerance = max(ROUNDED_TOLERANCE if subject.rounds else TOLERANCE, reference.tolerance(measure))
    if subject.rounds and subject.device.operator_library is None and subject.fallback == "fast":
        tolerance = max(tolerance, FAST_TOLERANCE)
    checks += _compared(Way.WHOLE, measure, tolerance, reference.plain, found, origins)
    checks += _cached(subject, prompts, measure, tolerance, reference.plain, origins)
    shaken = [[result.hidden[layer] for layer in layers] for result in reference.shaken]
    errors, movements = (_errors(layers, reference.plain, other) for other in (states, shaken))
    return tuple(checks), tuple(
        LayerCheck(layer, errors[place].relative, movements[place].relative, exact[place] if exact else None)
        for place, layer in enumerate(layers)
    )


def _origins(subject: Subject, prompts: Sequence[Ids], progress: Progress) -> tuple[list[FloatArray], list[LogitCheck]]:
    """The logits of the source, and whether scales of its inputs leave them as they are."""
    scaled = bool(subject.scaling.scales)

    def run(name: str, source: SourceModel, noises: Sequence[int | None]) -> list[Forward]:
        sequences = [Prompt(ids, noise) for noise in noises for ids in prompts]
        report = partial(progress, name)
        return forward(source.spec, source.tensors, SourceRule(source), sequences, progress=report)

    source = subject.source
    results = run("source", source, (None, _NOISE) if scaled else (None,))
    own = results[: len(prompts)]
    origins = [result.logits for result in own]
    if not scaled:
        return origins, []
    # Scales that cancel move the logits as any rounding does.
    tolerance = max(TOLERANCE, _Reference(own, results[len(prompts) :]).tolerance(Measure.DIFFERENCE))
    twin = run("source, scaled", replace(source, tensors=subject.scaling.tensors(source.tensors)), (None,))
    found = [result.logits for result in twin]
    return origins, _compared(Way.SCALED, Measure.DIFFERENCE, tolerance, own, found, origins)


def check_linear_layers(subject: Subject, ids: Ids) -> tuple[OperatorCheck, ...]:
    """Every linear layer with integer activations on what it reads in a short prompt."""
    nodes = linear_nodes(load_graph(subject.info.model_path))
    checks = _contradictions(subject, nodes)
    if subject.device.operator_library is None and subject.fallback == "fast":
        return tuple(checks)
    wrong = {check.node for check in checks}
    nodes = [node for node in nodes if node.attributes.activation_bits and node.name not in wrong]
    names = dict.fromkeys(name for node in nodes for name in (node.inputs[0], node.output))
    _, values = PackageSession(subject.info, subject.device, list(names)).run(ids[:_SHORT])
    found = dict(zip(names, values, strict=True))
    pairs = [(found[node.inputs[0]], found[node.output]) for node in nodes]
    return (*checks, *check_operators(nodes, subject.graph, pairs))


def _contradictions(subject: Subject, nodes: Sequence[LinearNode]) -> list[OperatorCheck]:
    """Layers whose activations have other bits than the manifest says."""
    bits: dict[str, int] = {}
    for role, precision in subject.precisions.items():
        tied = role == "embed_tokens" and subject.source.spec.tie_word_embeddings
        path = module_path("lm_head") if tied else subject.tensors.path(role)
        bits[f"{path}/BitLinear"] = precision.activation_bits
    return [
        OperatorCheck(node.name, 0, problem=f"{found}-bit activations, the manifest says {bits.get(node.name)}")
        for node in nodes
        if (found := node.attributes.activation_bits) != bits.get(node.name)
    ]


def _reference(
    subject: Subject, prompts: Sequence[Ids], layers: Sequence[int], progress: Progress, *, floats: bool
) -> _Reference:
    rule = PackageRule(subject.tensors, subject.precisions, floats)
    name = "reference, floats" if floats else "reference"
    results = forward(
        subject.source.spec,
        subject.tensors,
        rule,
        [Prompt(ids, noise) for noise in (None, _NOISE) for ids in prompts],
        layers=layers,
        progress=lambda done, total: progress(name, done, total),
    )
    return _Reference(results[: len(prompts)], results[len(prompts) :])


def _whole(
    subject: Subject, prompts: Sequence[Ids], layers: Sequence[int], *, floats: bool
) -> tuple[list[FloatArray], list[list[FloatArray]]]:
    names = [hidden_name(subject.source.spec, layer) for layer in layers]
    session = PackageSession(subject.info, subject.device, names, floats=floats)
    results = [session.run(ids) for ids in prompts]
    return [logits for logits, _ in results], [states for _, states in results]


def _cached(
    subject: Subject,
    prompts: Sequence[Ids],
    measure: Measure,
    tolerance: float,
    reference: Sequence[Forward],
    origins: Sequence[FloatArray],
) -> list[LogitCheck]:
    engine = subject.info.engine_path is not None
    session = PackageSession(subject.info, subject.device, engine=engine)
    checks = []
    for ids, result, origin in zip(prompts, reference, origins, strict=True):
        if len(ids) > 1:
            found, _ = session.run(ids, (len(ids) + 1) // 2)
            last = result.logits[-1:], found[-1:], origin[-1:]
            checks.append(_check(Way.CACHED, measure, tolerance, len(ids), *last))
    return checks


def _compared(
    way: Way,
    measure: Measure,
    tolerance: float,
    reference: Sequence[Forward],
    found: Sequence[FloatArray],
    origins: Sequence[FloatArray],
) -> list[LogitCheck]:
    return [
        _check(way, measure, tolerance, len(got), result.logits, got, origin)
        for result, got, origin in zip(reference, found, origins, strict=True)
    ]


def _check(
    way: Way,
    measure: Measure,
    tolerance: float,
    tokens: int,
    expected: FloatArray,
    found: FloatArray,
    origin: FloatArray,
) -> LogitCheck:
    agreement = float(np.mean(found.argmax(axis=-1) == origin.argmax(axis=-1)))
    distance = _distance(measure, expected, found)
    return LogitCheck(tokens, way, measure, distance, tolerance, _divergence(origin, found), agreement)


def _distance(measure: Measure, expected: FloatArray, found: FloatArray) -> float:
    if measure is Measure.RELATIVE:
        return relative_error(expected, found)
    with np.errstate(invalid="ignore", over="ignore"):
        return float(np.abs(found - expected).max())


def _errors(layers: Sequence[int], reference: Sequence[Forward], states: Sequence[Sequence[FloatArray]]) -> list[Error]:
    """The error after each layer over all prompts."""
    errors = [Error() for _ in layers]
    for result, hidden in zip(reference, states, strict=True):
        for layer, error, state in zip(layers, errors, hidden, strict=True):
            error.add(result.hidden[layer], state)
    return errors


def _divergence(source: FloatArray, found: FloatArray) -> float:
    """Mean over positions of `sum p (log p - log q)`, in nats."""
    total = 0.0
    for left, right in zip(source, found, strict=True):
        p, q = _log_softmax(left), _log_softmax(right)
        total += float(np.sum(np.exp(p) * (p - q)))
    return total / len(source)


def _log_softmax(logits: FloatArray) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):
        wide -= wide.max()
        wide -= np.log(np.exp(wide).sum())
    return wide
