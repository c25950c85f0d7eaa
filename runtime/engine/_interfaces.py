"""What the engine needs of the decoder below it, and of the memory pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


class SequenceLike(Protocol):
    """One sequence of a batch session; made, changed and closed by the session alone."""

    @property
    def length(self) -> int:
        """Tokens whose keys and values are held."""
        ...


class KvBlockLike(Protocol):
    """Keys and values of some neighbouring positions, copied out of a sequence."""

    @property
    def nbytes(self) -> int:
        """Its size."""
        ...


class BatchSessionLike(Protocol):
    """A decoder that steps many sequences at once; used by one thread. Handles are of the session's own types."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        ...

    @property
    def context_length(self) -> int:
        """Most tokens of a sequence."""
        ...

    @property
    def prefill_chunk(self) -> int:
        """Most tokens of one `prefill`."""
        ...

    @property
    def max_batch(self) -> int:
        """Most sequences at a time."""
        ...

    @property
    def exact(self) -> bool:
        """Whether logits are the same bits in any call."""
        ...

    def open(self, length: int) -> Any | None:
        """An empty sequence with room for `length` tokens; None when memory or slots are spent."""
        ...

    def prefill(self, sequence: Any, ids: Sequence[int], *, logits: bool) -> npt.NDArray[np.float32] | None:
        """Reads ids behind what the sequence holds; the logits `[vocab]` of the last position if asked."""
        ...

    def decode(self, sequences: Sequence[Any], ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Reads one token into each of the sequences; logits `[n, vocab]`."""
        ...

    def verify(
        self, sequences: Sequence[Any], ids: Sequence[int], drafts: Sequence[Sequence[int]]
    ) -> Sequence[npt.NDArray[np.float32]]:
        """Reads one token into each of the sequences and a draft of what follows it, or nothing of the draft.

        Returns:
            For each the logits `[1 + tokens read of its draft, vocab]`.
        """
        ...

    def truncate(self, sequence: Any, length: int) -> None:
        """Forgets all tokens from position `length` on."""
        ...

    def reserve(self, sequence: Any, length: int) -> bool:
        """Makes room for `length` tokens in all; False when memory is spent."""
        ...

    def close(self, sequence: Any) -> None:
        """Gives the slot back."""
        ...

    def copy_out(self, sequence: Any, start: int, stop: int) -> KvBlockLike:
        """Keys and values of positions `start` to `stop`."""
        ...

    def copy_in(self, sequence: Any, block: Any) -> None:
        """Appends what `copy_out` gave for the same positions of the same tokens."""
        ...

    def trim(self) -> None:
        """Gives back memory that no sequence needs."""
        ...
