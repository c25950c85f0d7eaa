"""The execution provider for Apple GPUs: its library, its device, and memory that the device sees."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from bitnet_onnx.errors import BitnetOnnxError, OperatorError
from bitnet_onnx.runtime._native_errors import one_line

PROVIDER: Final = "BitNetMetal"


@lru_cache(maxsize=1)
def find_device(path: Path) -> Any:
    """The device of the provider's library, which is registered with ONNX Runtime where it is not yet.

    Raises:
        OperatorError: the library does not load, or finds no device.
    """
    devices = _devices()
    if not devices:
        try:
            # ONNX Runtime looks for relative paths beside its own library.
            ort.register_execution_provider_library(PROVIDER, str(path.resolve()))
        except Exception as error:
            raise OperatorError(f"{path}: ONNX Runtime cannot load the Metal provider: {one_line(error)}") from None
        devices = _devices()
    if not devices:
        raise OperatorError(f"{path}: the Metal provider finds no device that ONNX Runtime knows")
    return devices[0]


def add_provider(options: ort.SessionOptions, path: Path) -> None:
    """Lets the sessions that `options` will open run on the device.

    Raises:
        OperatorError: as `find_device`.
    """
    device = find_device(path)
    try:
        options.add_provider_for_devices([device], {})
    except Exception as error:
        raise OperatorError(f"{path}: ONNX Runtime cannot use the Metal provider: {one_line(error)}") from None


def device_zeros(path: Path, shape: Sequence[int], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """An array of zeros in memory that the device sees: a session that it is bound to does not copy it.

    Raises:
        BitnetOnnxError: the memory cannot be had.
    """
    size = dtype.itemsize
    for length in shape:
        size *= length
    if size == 0:
        return np.zeros(shape, dtype)
    array: npt.NDArray[Any] = np.asarray(_Memory(_library(path), size)).view(dtype).reshape(shape)
    array.fill(0)
    return array


class _Memory:
    """Bytes of the device, which go with the last array over them."""

    def __init__(self, library: ctypes.CDLL, size: int) -> None:
        self._library = library
        self._address = library.BitnetMetalAllocate(size)
        if not self._address:
            raise BitnetOnnxError(f"no memory of the device for {size} bytes")
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": (size,), "data": (self._address, False)}

    def __del__(self) -> None:
        if self._address:
            self._library.BitnetMetalFree(self._address)


@lru_cache(maxsize=1)
def _library(path: Path) -> ctypes.CDLL:
    # The provider that ONNX Runtime has loaded already, or will.
    library = ctypes.CDLL(str(path.resolve()))
    library.BitnetMetalAllocate.restype = ctypes.c_void_p
    library.BitnetMetalAllocate.argtypes = [ctypes.c_size_t]
    library.BitnetMetalFree.restype = None
    library.BitnetMetalFree.argtypes = [ctypes.c_void_p]
    return library


def _devices() -> list[Any]:
    return [device for device in ort.get_ep_devices() if device.ep_name == PROVIDER]
