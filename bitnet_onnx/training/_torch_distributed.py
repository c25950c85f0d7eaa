"""The processes that torchrun started, joined by gloo: the one module that imports torch, when it is called."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

import numpy as np

from bitnet_onnx.quantized import FloatArray
from bitnet_onnx.training.parallel import WorkerError

#: One process may write a checkpoint or read all texts while the others wait; a process that ends is noticed at once.
_PATIENCE: Final = timedelta(hours=2)


class Group:
    """A process group of gloo, over the arrays' own memory.

    Args:
        torch: the library.
        rank: of this process.
        size: number of processes.
    """

    def __init__(self, torch: Any, rank: int, size: int) -> None:
        self._torch = torch
        self.rank: Final = rank
        self.size: Final = size

    def sum(self, array: FloatArray) -> None:
        """Add up, in place."""
        with _explained():
            self._torch.distributed.all_reduce(self._torch.from_numpy(array.view(np.ndarray)))

    def sum_scalars(self, values: Sequence[float]) -> list[float]:
        """Add up in double precision."""
        tensor = self._torch.tensor(values, dtype=self._torch.float64)
        with _explained():
            self._torch.distributed.all_reduce(tensor)
        sums: list[float] = tensor.tolist()
        return sums

    def broadcast(self, array: FloatArray) -> None:
        """Take rank 0's, in place."""
        with _explained():
            self._torch.distributed.broadcast(self._torch.from_numpy(array.view(np.ndarray)), 0)

    def barrier(self) -> None:
        """Wait for all."""
        with _explained():
            self._torch.distributed.barrier()


@contextmanager
def open_group(rank: int, size: int) -> Iterator[Group]:
    """Join the group that torchrun's variables describe.

    Raises:
        ImportError: torch is not installed.
        WorkerError: the others cannot be reached.
    """
    import torch
    import torch.distributed as distributed

    # The engine has the cores: what torch does here is to move memory.
    torch.set_num_threads(1)
    with _explained():
        distributed.init_process_group("gloo", rank=rank, world_size=size, timeout=_PATIENCE)
    try:
        yield Group(torch, rank, size)
    finally:
        distributed.destroy_process_group()


@contextmanager
def _explained() -> Iterator[None]:
    """What gloo complains about, as what it means for the run."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else "no reason given"
        raise WorkerError(
            f"another process of the run is gone or cannot be reached ({reason}); see what it wrote, and start all of "
            f"them again: they go on from the last checkpoint"
        ) from None
