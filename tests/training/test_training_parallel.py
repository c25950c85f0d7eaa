"""Who takes part in a run, and who takes what."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from bitnet_onnx.errors import InputError, UnsupportedError
from bitnet_onnx.training.parallel import Alone, ToldElsewhereError, agree, open_collective

TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    "environment",
    [{}, {"WORLD_SIZE": "8", "RANK": "1"}, {**TORCHRUN, "WORLD_SIZE": "1"}],
    ids=["no launcher", "another launcher", "one process"],
)
def test_a_process_without_others_is_alone(environment: Mapping[str, str]) -> None:
    with open_collective(environment) as collective:
        assert isinstance(collective, Alone)
        array = np.arange(3, dtype=np.float32)
        collective.sum(array)
        collective.broadcast(array)
        collective.barrier()
        assert array.tolist() == [0, 1, 2]
        assert collective.sum_scalars([0.5, 2]) == [0.5, 2]


@pytest.mark.parametrize(
    ("name", "value"),
    [("WORLD_SIZE", "two"), ("WORLD_SIZE", "9" * 30), ("RANK", "2"), ("RANK", "-1"), ("RANK", ""), ("RANK", "\u0663")],
)
def test_variables_that_cannot_be_are_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(InputError, match=name), open_collective({**TORCHRUN, name: value}):
        pass


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else find(name, *rest))
    with (
        pytest.raises(UnsupportedError, match=r"pip install 'bitnet-onnx\[train-parallel\]'"),
        open_collective(TORCHRUN),
    ):
        pass


class _OneOf(Alone):
    """A process of three, of which others fail too."""

    size = 3

    def __init__(self, rank: int, *failing: int) -> None:
        self.rank = rank
        self._failing = failing

    def sum_scalars(self, values: Sequence[float]) -> list[float]:
        return [value + (rank in self._failing) for rank, value in enumerate(values)]


def test_of_processes_that_fail_the_first_tells_why() -> None:
    def fails() -> None:
        raise InputError("no such file")

    assert agree(_OneOf(1), lambda: 5) == 5
    for others in ((), (2,)):
        with pytest.raises(InputError, match="no such file"):
            agree(_OneOf(1, *others), fails)
    with pytest.raises(ToldElsewhereError, match="process 0 of the run"):
        agree(_OneOf(1, 0, 2), fails)
    with pytest.raises(ToldElsewhereError, match="process 2 of the run"):
        agree(_OneOf(1, 2), lambda: 5)
