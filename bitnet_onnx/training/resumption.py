"""Which settings may change while a run is interrupted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from bitnet_onnx.errors import InputError
from bitnet_onnx.training.settings import RateCurve

#: Nothing that is computed depends on them, but for rounding.
FREE: Final = frozenset(
    {
        "data.cache",
        "data.validation",
        "engine.memory",
        "engine.micro_batch",
        "engine.name",
        "engine.recompute",
        "engine.threads",
        "loop.checkpoint_every",
        "loop.evaluate_every",
        "loop.evaluation_windows",
        "loop.keep",
        "loop.log_every",
        "loop.measure_every",
        "loop.patience",
        "loop.rollbacks",
        "loop.tensorboard",
    }
)
_STEPS: Final = "loop.steps"


def check_same_run(saved: Mapping[str, str], now: Mapping[str, str], output: str) -> None:
    """Refuse to go on with settings that make it another run.

    Args:
        saved: settings of the checkpoint, as `config_file.flat` gives them.
        now: those of this run.
        output: directory of the run.

    Raises:
        InputError: a field differs that matters; it is named with both values.
    """
    for name in sorted(saved.keys() | now.keys()):
        before, after = saved.get(name, ""), now.get(name, "")
        if before == after or name in FREE:
            continue
        if name == _STEPS and _endless(now):
            continue
        raise InputError(
            f"{output}: {name} is {_shown(after)}, and was {_shown(before)} when the run began; "
            f"set it back to go on; to begin again choose another output, or --fresh, which removes what is there"
        )


def _endless(settings: Mapping[str, str]) -> bool:
    """Whether no step depends on how many there will be."""
    return settings.get("optimizer.curve") == f'"{RateCurve.CONSTANT}"'


def _shown(text: str) -> str:
    flat = " ".join(text.split())
    return "not given" if not flat else flat if len(flat) <= 60 else flat[:57] + "..."
