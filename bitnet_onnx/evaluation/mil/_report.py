"""What looking at a Core ML package found."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from bitnet_onnx.evaluation._report import WeightCheck


class Way(enum.StrEnum):
    """How a prompt is read."""

    #: in one call, activations left as floats: where they are rounded to integers, a unit in the last place becomes
    #: one of an integer, and what follows can only be compared loosely
    FLOATS = "floats"
    #: in one call, the mask all zeros
    WHOLE = "whole"
    #: in several calls, the last ones with a single token
    CACHED = "cached"
    #: in one call, the mask with -inf where nothing is to be seen
    MASKED = "masked"
    #: as `whole`, with what is declared float16 rounded to it
    FLOAT16 = "float16"
    #: as `cached`, with what is declared float16 rounded to it
    FLOAT16_CACHED = "float16, cached"


@dataclass(frozen=True, slots=True)
class LogitError:
    """One prompt through the package and through the reference.

    Attributes:
        tokens: of the prompt.
        way: how it is read.
        error: root of the squared error of all logits over the root of the squared reference.
        tolerance: the most that it may be; None where the error is only shown.
    """

    tokens: int
    way: Way
    error: float
    tolerance: float | None

    @property
    def holds(self) -> bool:
        """Whether the package computes what the reference does; NaN never does."""
        return self.tolerance is None or self.error <= self.tolerance


@dataclass(frozen=True, slots=True)
class LayerError:
    """One layer of the package against the reference on the same input, over all prompts.

    Attributes:
        layer: its index.
        error: root of the squared error over the root of the squared reference.
        tolerance: the most that it may be.
        whole: the error of hidden states after it, where the reference has come all the way by itself.
    """

    layer: int
    error: float
    tolerance: float
    whole: float

    @property
    def holds(self) -> bool:
        """Whether the layer computes what the reference does; NaN never does."""
        return self.error <= self.tolerance


@dataclass(frozen=True, slots=True)
class Overflow:
    """An operation whose values half precision does not hold, or that gives none.

    Attributes:
        operation: its name.
        type: its type, such as `mul`.
        tokens: of the prompt that showed it first.
        mode: `wide` or `float16`.
        count: of such elements there.
        largest: magnitude before rounding; 0 where they are not numbers.
        text: all of it, in one line.
    """

    operation: str
    type: str
    tokens: int
    mode: str
    count: int
    largest: float
    text: str


@dataclass(frozen=True, slots=True)
class Trial:
    """A function of a package that was only run, on made-up inputs.

    Attributes:
        function: its name.
        operations: how many it has, constants not counted.
        inputs: shapes that were given.
        outputs: shapes that came out.
    """

    function: str
    operations: int
    inputs: Mapping[str, tuple[int, ...]]
    outputs: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Verification:
    """What looking at a package found.

    Attributes:
        package: its path.
        source: path of the checkpoint; empty where the package was only run.
        float16: half precision was tried.
        weights: every tensor.
        logits: every prompt, each way.
        layers: the layers that were looked at.
        overflows: each operation once.
        trials: functions of a package that was only run.
        warnings: what a reader should know.
    """

    package: str
    source: str
    float16: bool
    weights: tuple[WeightCheck, ...]
    logits: tuple[LogitError, ...]
    layers: tuple[LayerError, ...]
    overflows: tuple[Overflow, ...]
    trials: tuple[Trial, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether everything that is judged holds."""
        judged = [check.holds for check in self.weights]
        judged += [check.holds for check in self.logits]
        judged += [check.holds for check in self.layers]
        return not self.overflows and all(judged)

    def as_dict(self) -> dict[str, object]:
        """All facts as JSON values."""
        weights = [{**asdict(check), "holds": check.holds} for check in self.weights]
        logits = [{**asdict(check), "holds": check.holds} for check in self.logits]
        layers = [{**asdict(check), "holds": check.holds} for check in self.layers]
        return {"holds": self.holds, **asdict(self), "weights": weights, "logits": logits, "layers": layers}
