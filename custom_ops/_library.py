"""What an operator library says of itself."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

from bitnet_onnx.custom_ops._binary import check_binary
from bitnet_onnx.errors import OperatorError


@dataclass(frozen=True, slots=True)
class LibraryFacts:
    """An operator library that loads.

    Attributes:
        path: where it is.
        version: such as `0.1.0`.
        isa: the instruction set in use; "" where BITNET_ONNX_ISA cannot be honoured.
        oldest_operator_version: of the operators' contract, as `operator_version`.
        operator_version: the newest that it runs.
    """

    path: Path
    version: str
    isa: str
    oldest_operator_version: int
    operator_version: int

    @property
    def build(self) -> str:
        """Version and instruction set, as `0.1.0 (avx2)`."""
        return f"{self.version} ({self.isa or 'unusable BITNET_ONNX_ISA'})"

    @property
    def runs(self) -> str:
        """The versions of the operators on a few words."""
        if self.oldest_operator_version == self.operator_version:
            return f"version {self.operator_version}"
        return f"versions {self.oldest_operator_version} to {self.operator_version}"


def read_facts(path: Path, remedy: str) -> LibraryFacts:
    """Loads a library and asks it.

    Args:
        path: the file.
        remedy: what the user can do if it is of no use, for the message.

    Raises:
        OperatorError: it is for another platform, does not load, or is not our operator library.
    """
    check_binary(path, remedy)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        reason = " ".join(str(error).split()).removeprefix(f"{path}: ")
        raise OperatorError(f"{path} cannot be loaded: {reason}; {remedy}") from None
    try:
        _ = library.RegisterCustomOps
        texts = []
        for text in (library.BitnetOpsVersion, library.BitnetOpsIsa):
            text.restype = ctypes.c_char_p
            texts.append((text() or b"").decode(errors="replace"))
        numbers = [library.BitnetOpsOldestOperatorVersion(), library.BitnetOpsOperatorVersion()]
    except AttributeError as error:
        missing = str(error).split()[-1]
        raise OperatorError(
            f"{path} exports no {missing}: it is not the operator library of bitnet-onnx 0.1 or later; {remedy}"
        ) from None
    return LibraryFacts(path, texts[0], texts[1], numbers[0], numbers[1])
