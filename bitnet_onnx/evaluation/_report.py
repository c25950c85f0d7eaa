"""What a validation found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal


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
    """

    role: str
    stored: str
    size: int
    differing: int = 0
    scales: int = 0
    first: tuple[int, ...] | None = None
    problem: str = ""

    @property
    def holds(self) -> bool:
        """Whether the package has what the source gives."""
        return not (self.differing or self.scales or self.problem)


@dataclass(frozen=True, slots=True)
class LogitCheck:
    """One prompt through the package and through the reference.

    Attributes:
        tokens: of the prompt.
        way: `whole`: every position in one call of `model.onnx`; `cached`: the last position, read in two calls of the
            graph that `bitnet-onnx` runs, the second behind the cache of the first.
        measure: `difference`: largest difference of a logit; `relative`: root of the squared error over the root of
            the squared reference.
        value: what was measured.
        tolerance: the most that it may be.
        divergence: mean Kullback-Leibler divergence from the source's own forward to the package, in nats.
        agreement: part of positions whose most likely token is that of the source.
    """

    tokens: int
    way: Literal["whole", "cached"]
    measure: Literal["difference", "relative"]
    value: float
    tolerance: float
    divergence: float
    agreement: float

    @property
    def holds(self) -> bool:
        """Whether the package computes what the reference does; NaN never does."""
        return self.value <= self.tolerance


@dataclass(frozen=True, slots=True)
class LayerCheck:
    """Hidden states after one layer, over all prompts: they locate a fault and judge nothing.

    Attributes:
        layer: its index.
        error: root of the squared error over the root of the squared reference.
        movement: the same of the reference under noise.
    """

    layer: int
    error: float
    movement: float


@dataclass(frozen=True, slots=True)
class Validation:
    """What a validation found.

    Attributes:
        package: its path.
        source: path of the checkpoint.
        runtime: what executed the package.
        weights: every tensor.
        logits: every prompt, both ways.
        layers: hidden states that were asked for.
        movement: largest difference of a logit between the reference and itself under noise.
        warnings: what a reader should know.
    """

    package: str
    source: str
    runtime: str
    weights: tuple[WeightCheck, ...]
    logits: tuple[LogitCheck, ...]
    layers: tuple[LayerCheck, ...]
    movement: float
    warnings: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether everything that is judged holds."""
        return all(check.holds for check in (*self.weights, *self.logits))

    def as_dict(self) -> dict[str, object]:
        """All facts as JSON values."""
        result = asdict(self)
        for name, checks in (("weights", self.weights), ("logits", self.logits)):
            result[name] = [{**asdict(check), "holds": check.holds} for check in checks]
        return {"holds": self.holds, **result}
