"""The external data file: tensors one after the other, each at an aligned offset."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bitnet_onnx.converters.onnx._directory import WriteError

#: Memory alignment of a mapped tensor equals its offset's: 16 KiB is a page on Apple silicon, so that the GPU can
#: use the mapping without a copy.
ALIGNMENT: Final = 16 * 1024

#: Smaller tensors stay inside the graph file: padding would cost more than they hold.
INLINE_LIMIT: Final = ALIGNMENT


@dataclass(frozen=True, slots=True)
class Packed:
    """What bytes are: the type of the elements, and the shape of the tensor that they make."""

    dtype: ir.DataType
    shape: tuple[int, ...]


class DataFile:
    """Writes tensors as they come, so that no more than one of them is in memory.

    Args:
        path: the file to create.

    Raises:
        WriteError: the disk is full, or whatever else the system says.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] = path.open("xb")

    def __enter__(self) -> DataFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # What could not be written fails once more, and would hide the first error.
        with suppress(OSError) if kind is not None else nullcontext():
            self._file.close()

    def store(self, name: str, array: npt.NDArray[np.generic], packed: Packed | None = None) -> ir.TensorProtocol:
        """Write an array (or keep a small one inline) and return the tensor that refers to it.

        Args:
            name: of the tensor.
            array: its elements, or the bytes of `packed`.
            packed: what several elements to a byte are; None where `array` says it.
        """
        array = np.asarray(array, order="C")  # ascontiguousarray would give a scalar a dimension
        if array.nbytes < INLINE_LIMIT:
            if packed is None:
                return ir.tensor(array, name=name)
            return ir.PackedTensor(array.ravel(), packed.dtype, shape=packed.shape, name=name)
        offset = -(-self._file.tell() // ALIGNMENT) * ALIGNMENT
        try:
            self._file.seek(offset)
            self._file.write(array.data.cast("B"))
            # A small rest must not fail later, at another tensor or at the end.
            self._file.flush()
        except OSError as error:
            raise WriteError(self._path, error, array.nbytes) from error
        return ir.ExternalTensor(
            self._path.name,
            offset,
            array.nbytes,
            ir.DataType.from_numpy(array.dtype) if packed is None else packed.dtype,
            shape=ir.Shape(array.shape if packed is None else packed.shape),
            name=name,
            base_dir=self._path.parent,
        )

    def alias(self, name: str, tensor: ir.TensorProtocol | None, like: Packed) -> ir.TensorProtocol:
        """The bytes of a tensor that `store` gave once more; the file holds them once.

        Args:
            name: of the new tensor.
            tensor: whose bytes these are.
            like: what they are this time; elements of whole bytes.
        """
        if isinstance(tensor, ir.ExternalTensor):
            return ir.ExternalTensor(
                tensor.location,
                tensor.offset,
                tensor.length,
                like.dtype,
                shape=ir.Shape(like.shape),
                name=name,
                base_dir=tensor.base_dir,
            )
        if tensor is None:
            raise ValueError(f"{name}: there is no tensor to share bytes with")
        return ir.tensor(np.frombuffer(tensor.tobytes(), like.dtype.numpy()).reshape(like.shape), name=name)
