"""What the converters see of a checkpoint, whatever its format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from bitnet_onnx.converters.checkpoints._files import BinaryFile, hashing, sha256_of
from bitnet_onnx.errors import CheckpointError
from bitnet_onnx.json_input import shown
from bitnet_onnx.quantized import QuantizedTensor

if TYPE_CHECKING:
    from bitnet_onnx.converters.checkpoints._decode import StoredTensor


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a checkpoint says about one tensor."""

    #: Hugging Face name, such as `model.layers.0.self_attn.q_proj.weight`.
    name: str
    #: As Hugging Face has it: `[out, in]` for linears.
    shape: tuple[int, ...]
    #: The stored type: `F32`, `F16`, `BF16`, `U8`, `Q4_1`, ...
    dtype: str
    #: Stored size in bytes.
    nbytes: int
    #: Name of the file that holds it, for messages.
    file: str


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """The files that make the tokenizer: `tokenizer.json`, always, and what stands beside it.

    Attributes:
        files: by name.
        warning: what a user of the files should know, once they are used; empty where there is nothing.
    """

    files: Mapping[str, bytes]
    warning: str = ""


class Checkpoint(ABC):
    """An open checkpoint in Hugging Face terms; a context manager.

    Nothing is read before it is asked for, and a read costs the memory of its result.
    """

    #: `safetensors` or `gguf`.
    format: str

    def __init__(
        self,
        *,
        path: Path,
        name: str,
        config: Mapping[str, object],
        generation_config: Mapping[str, object],
        stored: Mapping[str, StoredTensor],
        files: Mapping[str, BinaryFile],
    ) -> None:
        self.path = path
        self.name = name
        #: The content of config.json.
        self.config = config
        #: The content of generation_config.json, or empty.
        self.generation_config = generation_config
        self.tensors: Mapping[str, TensorInfo] = {key: tensor.info for key, tensor in stored.items()}
        self._stored = stored
        self._files = files

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the weight files; closing twice is fine."""
        for file in self._files.values():
            file.close()

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """A whole tensor in its shape as a new float32 array, dequantized if need be.

        Raises:
            CheckpointError: no such tensor, or a value is NaN or infinite.
            UnsupportedError: the tensor is stored in a type that is not read as floats.
        """
        tensor = self._find(name)
        return tensor.decode(0, tensor.size).reshape(tensor.info.shape)

    def read_rows(self, name: str, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Rows `start` to `stop` of a two-dimensional tensor as a new float32 array.

        Raises:
            CheckpointError: no such tensor, it is not two-dimensional, it has no such rows, or a value is NaN
                or infinite.
            UnsupportedError: the tensor is stored in a type that is not read as floats.
        """
        tensor, width = self._rows_of(name, start, stop)
        return tensor.decode(start * width, stop * width).reshape(stop - start, width)

    def read_quantized(self, name: str) -> QuantizedTensor | None:
        """A matrix whose stored form holds codes and scales, without loss; None where it holds floats.

        `read` of such a matrix gives its values.

        Raises:
            CheckpointError: no such tensor, or a code or a scale that cannot be.
        """
        self._find(name)
        return None

    @abstractmethod
    def tokenizer(self) -> TokenizerFiles:
        """The tokenizer's files, checked against the vocabulary.

        Raises:
            CheckpointError: the tokenizer is missing, broken, or has ids beyond the vocabulary.
            UnsupportedError: a kind of tokenizer that is not implemented.
        """

    def sha256(self) -> str:
        """SHA-256 of the weights: of the file, or for several of the lines `NAME:DIGEST`, sorted by name."""
        return sha256_of(self._files)

    def hashing(self) -> AbstractContextManager[Callable[[], str]]:
        """Compute `sha256` beside other work; what the context gives waits for it."""
        return hashing(self._files)

    def _find(self, name: str) -> StoredTensor:
        try:
            return self._stored[name]
        except KeyError:
            raise CheckpointError(f"{self.path}: there is no tensor {shown(name)}") from None

    def _rows_of(self, name: str, start: int, stop: int) -> tuple[StoredTensor, int]:
        tensor = self._find(name)
        shape = tensor.info.shape
        if len(shape) != 2 or not 0 <= start <= stop <= shape[0]:
            raise CheckpointError(
                f"{self.path}: tensor {shown(name)} of shape {list(shape)} has no rows {start}..{stop}"
            )
        return tensor, shape[1]
