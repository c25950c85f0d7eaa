"""What a validation found."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import chain


@dataclass(frozen=True, slots=True)
class WeightCheck:
    """One tensor of the package against the source.

    Attributes:
        role: of the tensor, a matrix without `.weight`.
        stored: its precision.
        size: elements.
        differing: elements (codes, or floats) that are not equal bit for bit.
        scales: scales that are not equal bit for bit.
        first: index of the first difference, in the codes or else in the scales; None where there is none.
        problem: why it could not be compared, or empty.
        by_error: statistics decided the codes: only how far they are from the source was compared with the manifest.
    """

    role: str
    stored: str
    size: int
    differing: int = 0
    scales: int = 0
    first: tuple[int, ...] | None = None
    problem: str = ""
    by_error: bool = False

    @property
    def holds(self) -> bool:
        """Whether the package has what the source gives."""
        return not (self.differing or self.scales or self.problem)


class Way(enum.StrEnum):
    """How a prompt is read."""

    #: by the source in numpy with the scales of the package's inputs, which must not change what it computes
    SCALED = "scaled"
    #: all positions in one call of `model.onnx`, activations left as floats: where they are rounded to integers, a
    #: unit in the last place becomes one of an integer, and what follows can only be compared loosely
    FLOATS = "floats"
    #: all positions in one call of `model.onnx` as it is
    WHOLE = "whole"
    #: the last position, in two calls of the graph that `bitnet-onnx` runs, the second behind the cache of the first
    CACHED = "cached"


class Measure(enum.StrEnum):
    """How far logits are from the reference."""

    #: largest difference of a logit
    DIFFERENCE = "difference"
    #: root of the squared error over the root of the squared reference
    RELATIVE = "relative"


@dataclass(frozen=True, slots=True)
class LogitCheck:
    """One prompt through the package and through the reference.

    Attributes:
        tokens: of the prompt.
        way: how it is read.
        measure: what is measured.
        value: what was measured.
        tolerance: the most that it may be.
        divergence: mean Kullback-Leibler divergence from the source's own forward to the package, in nats.
        agreement: part of positions whose most likely token is that of the source.
    """

    tokens: int
    way: Way
    measure: Measure
    value: float
    tolerance: float
    divergence: float
    agreement: float

    @property
    def holds(self) -> bool:
        """Whether the package computes what the reference does; NaN never does."""
        return self.value <= self.tolerance


@dataclass(frozen=True, slots=True)
class OperatorCheck:
    """One linear layer with integer activations, on the input that it really had.

    Attributes:
        node: its name in the graph.
        size: elements of its output.
        differing: those that are not what the numpy operator gives.
        problem: what contradicts the manifest, or empty.
    """

    node: str
    size: int
    differing: int = 0
    problem: str = ""

    @property
    def holds(self) -> bool:
        """Whether the output is the numpy operator's."""
        return not (self.differing or self.problem)


@dataclass(frozen=True, slots=True)
class LayerCheck:
    """Hidden states after one layer, over all prompts: they locate a fault and judge nothing.

    Attributes:
        layer: its index.
        error: root of the squared error over the root of the squared reference.
        movement: the same of the reference under noise.
        floats: as `error`, with activations left as floats; None where no activation is rounded.
    """

    layer: int
    error: float
    movement: float
    floats: float | None = None


@dataclass(frozen=True, slots=True)
class Validation:
    """What a validation found.

    Attributes:
        package: its path.
        source: path of the checkpoint.
        runtime: what executed the package.
        weights: every tensor.
        logits: every prompt, each way.
        operators: every linear layer with integer activations; none with the `fast` function bodies, which round in
            another way.
        layers: hidden states that were asked for.
        warnings: what a reader should know.
    """

    package: str
    source: str
    runtime: str
    weights: tuple[WeightCheck, ...]
    logits: tuple[LogitCheck, ...]
    operators: tuple[OperatorCheck, ...]
    layers: tuple[LayerCheck, ...]
    warnings: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether everything that is judged holds."""
        checks: Iterable[WeightCheck | LogitCheck | OperatorCheck] = chain(self.weights, self.logits, self.operators)
        return all(check.holds for check in checks)

    def as_dict(self) -> dict[str, object]:
        """All facts as JSON values."""
        weights = [{**asdict(check), "holds": check.holds} for check in self.weights]
        logits = [{**asdict(check), "holds": check.holds} for check in self.logits]
        operators = [{**asdict(check), "holds": check.holds} for check in self.operators]
        return {"holds": self.holds, **asdict(self), "weights": weights, "logits": logits, "operators": operators}
