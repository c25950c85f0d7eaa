"""Several processes that train one model on parts of each batch."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, Protocol, TypeVar

from bitnet_onnx.errors import BitnetOnnxError, InputError, TrainingError, UnsupportedError
from bitnet_onnx.quantized import FloatArray

#: What torchrun tells each process that it starts.
_VARIABLES: Final = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_MAX_PROCESSES: Final = 4096

Result = TypeVar("Result")


class WorkerError(TrainingError):
    """Another process of the run is gone."""


class ToldElsewhereError(TrainingError):
    """The run ends, and another process of it tells why."""


class Collective(Protocol):
    """All processes of a run, each of which calls the same methods in the same order.

    The process of rank 0 alone writes logs, checkpoints and what comes out.
    """

    @property
    def rank(self) -> int:
        """Of this process, from 0 on."""
        ...

    @property
    def size(self) -> int:
        """Number of processes."""
        ...

    def sum(self, array: FloatArray) -> None:
        """Replace a contiguous float32 array by the sum of all processes' arrays, which has the same bits in each.

        Raises:
            WorkerError: another process is gone.
        """
        ...

    def sum_scalars(self, values: Sequence[float]) -> list[float]:
        """Sums, one for each of the values, in double precision.

        Raises:
            WorkerError: another process is gone.
        """
        ...

    def broadcast(self, array: FloatArray) -> None:
        """Replace a contiguous float32 array by that of rank 0.

        Raises:
            WorkerError: another process is gone.
        """
        ...

    def barrier(self) -> None:
        """Wait until all processes are here.

        Raises:
            WorkerError: another process is gone.
        """
        ...


class Alone:
    """One process: nothing to exchange."""

    rank = 0
    size = 1

    def sum(self, array: FloatArray) -> None:
        """Nothing: the sum of one."""

    def sum_scalars(self, values: Sequence[float]) -> list[float]:
        """The values."""
        return list(values)

    def broadcast(self, array: FloatArray) -> None:
        """Nothing: it is that of rank 0."""

    def barrier(self) -> None:
        """All are here."""


def agree(processes: Collective, stage: Callable[[], Result]) -> Result:
    """Do a stage in all processes; where it fails in any, all end, and the first of those tells why.

    Args:
        processes: each of which comes here.
        stage: in which no process waits for another.

    Raises:
        ToldElsewhereError: it failed in a process of a lower rank, or in others alone.
        WorkerError: another process is gone.
    """
    failure: BitnetOnnxError | OSError | None = None
    try:
        result = stage()
    except (BitnetOnnxError, OSError) as error:
        failure = error
    failed = processes.sum_scalars(
        [float(failure is not None and rank == processes.rank) for rank in range(processes.size)]
    )
    if failure is not None and not any(failed[: processes.rank]):
        raise failure
    if any(failed):
        raise ToldElsewhereError(f"process {failed.index(1.0)} of the run could not go on")
    return result


@contextmanager
def open_collective(environment: Mapping[str, str] | None = None) -> Iterator[Collective]:
    """The processes that torchrun started with this one, or this one alone.

    Args:
        environment: variables; None is those of this process.

    Raises:
        InputError: the variables contradict each other.
        UnsupportedError: there are several processes, and torch is not installed.
        WorkerError: the others cannot be reached.
    """
    variables = os.environ if environment is None else environment
    if any(name not in variables for name in _VARIABLES):
        yield Alone()
        return
    size = _count(variables, "WORLD_SIZE", _MAX_PROCESSES)
    rank = _count(variables, "RANK", size - 1)
    if size <= 1:
        yield Alone()
        return
    if importlib.util.find_spec("torch") is None:
        raise UnsupportedError(
            f"WORLD_SIZE is {size}: several processes need torch: pip install 'bitnet-onnx[train-parallel]'"
        )
    from bitnet_onnx.training._torch_distributed import open_group

    with open_group(rank, size) as group:
        yield group


def _count(variables: Mapping[str, str], name: str, most: int) -> int:
    text = variables[name]
    if not text.isascii() or not text.isdigit() or len(text) > 6 or int(text) > most:
        raise InputError(
            f"the variable {name} is {text[:20]!r}: expected a number from 0 to {most}, as torchrun sets it"
        )
    return int(text)
