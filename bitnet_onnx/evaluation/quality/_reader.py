"""The model's logits behind each token of a window, a bounded number of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from bitnet_onnx.quantized import FloatArray
from bitnet_onnx.runtime import Device, PackageInfo
from bitnet_onnx.runtime.session import DecoderSession

#: Two models at once, and what a head computes on its way to logits, stay below 300 MB with it.
_LOGITS_BYTES: Final = 48 << 20
_MAX_CHUNK: Final = 256


def chunk_size(vocab_size: int) -> int:
    """Rows of logits that are had at once."""
    return min(_MAX_CHUNK, max(1, _LOGITS_BYTES // (4 * vocab_size)))


class WindowReader:
    """Reads one sequence after the other through a package.

    Args:
        package: the checked package.
        device: where it runs.
        threads: of one operator.
        activation_bits: see `bitnet_onnx.load`.

    Attributes:
        package: as given.

    Raises:
        PackageError: ONNX Runtime refuses the package.
        InputError, UnsupportedError: as `bitnet_onnx.load`.
    """

    def __init__(
        self, package: PackageInfo, device: Device, *, threads: int | None = None, activation_bits: int | None = None
    ) -> None:
        self.package = package
        self._session = DecoderSession(package, device, threads=threads, activation_bits=activation_bits)
        self._cache = self._session.new_cache()
        self._chunk = chunk_size(package.architecture.vocab_size)
        self._held: list[int] = []

    def read(self, ids: Sequence[int], skip: int) -> Iterator[FloatArray]:
        """Logits behind the tokens from `skip` on, `[rows, vocabulary]` in pieces that are the same for every model.

        What a sequence shares with the head of the one before is not read again.

        Args:
            ids: the tokens.
            skip: tokens whose logits are not wanted, fewer than there are.
        """
        kept = min(_common(self._held, ids), skip)
        self._cache.truncate(kept)
        self._held = list(ids[:kept])
        if kept < skip:
            self._session.step(ids[kept:skip], self._cache)
            self._held = list(ids[:skip])
        for start in range(skip, len(ids), self._chunk):
            chunk = ids[start : start + self._chunk]
            logits = self._session.forward(chunk, self._cache)
            self._held += chunk
            yield logits

    def forget(self) -> None:
        """Begin anew: the same sequence gives the same logits then, whatever was read before."""
        self._cache.reset()
        self._held = []


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common beginning."""
    length = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        length += 1
    return length
