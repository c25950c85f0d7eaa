"""Where a run stands, besides values and moments, and its JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from bitnet_onnx.errors import CheckpointError

_MAX_COUNT: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class RunState:
    """Where a run stands.

    Attributes:
        step: steps done.
        optimizer_steps: steps that the moments have seen.
        total_positions: tokens read.
        data: position of the data, as its stream gives it.
        best_loss: least loss of an evaluation so far.
        best_step: when that was.
        waiting: evaluations since.
        rollbacks: times that the run went back.
    """

    step: int = 0
    optimizer_steps: int = 0
    total_positions: int = 0
    data: Mapping[str, object] = field(default_factory=dict)
    best_loss: float | None = None
    best_step: int = 0
    waiting: int = 0
    rollbacks: int = 0


def state_fields(state: RunState) -> dict[str, Any]:
    """The fields as JSON has them; floats come back bit for bit."""
    return {one.name: getattr(state, one.name) for one in dataclasses.fields(state)}


def parse_state(value: object, where: str) -> RunState:
    """The state of such fields.

    Raises:
        CheckpointError: one is missing, unknown or of another type; the message begins with `where`.
    """
    names = [one.name for one in dataclasses.fields(RunState)]
    if not isinstance(value, dict) or sorted(value) != sorted(names):
        raise CheckpointError(f"{where}: state must have exactly {', '.join(names)}")
    for name in names:
        given = value[name]
        if name == "data":
            fits = isinstance(given, dict)
        elif name == "best_loss":
            fits = given is None or (isinstance(given, int | float) and not isinstance(given, bool))
            fits = fits and (given is None or math.isfinite(given))
        else:
            fits = isinstance(given, int) and not isinstance(given, bool) and 0 <= given < _MAX_COUNT
        if not fits:
            raise CheckpointError(f"{where}: state.{name} is {given!r:.60}, which it cannot be")
    return RunState(**value)
