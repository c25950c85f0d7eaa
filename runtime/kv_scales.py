"""Scales of int8 keys and values: what one step means, by layer, head and feature."""

from __future__ import annotations

import logging
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self, TypeAlias

import numpy as np

from bitnet_onnx.errors import BitnetOnnxError, InputError, PackageError
from bitnet_onnx.package_format import KV_SCALES
from bitnet_onnx.quantized import FloatArray
from bitnet_onnx.runtime._json import read_bytes
from bitnet_onnx.runtime.devices import Device
from bitnet_onnx.runtime.package import Architecture, PackageInfo

logger = logging.getLogger(__name__)

#: How keys and values are held.
KvType: TypeAlias = Literal["float32", "int8"]
KV_TYPES: Final[tuple[KvType, ...]] = ("float32", "int8")

#: What a safetensors file of two tensors may have beside their data; ours has about 200 bytes.
_MAX_HEADER_BYTES: Final = 1 << 16
#: Operators divide by scales: the reciprocal of a subnormal number may be infinite.
_LEAST: Final = float(np.finfo(np.float32).tiny)
_NAMES: Final = ("key", "value")


@dataclass(frozen=True, slots=True, eq=False)
class KvScales:
    """Values of one step of int8 keys and values.

    Attributes:
        key: float32 `[layers, kv_heads, head_dim]`, finite and at least 1.18e-38.
        value: as `key`.

    Raises:
        InputError: an array is of another type, or a scale is out of range.
    """

    key: FloatArray
    value: FloatArray

    def __post_init__(self) -> None:
        for name, scales in ((name, getattr(self, name)) for name in _NAMES):
            if scales.dtype != np.float32 or scales.ndim != 3 or scales.shape != self.key.shape:
                raise InputError(
                    f"{name} scales are {scales.dtype} {list(scales.shape)}, expected float32 of one shape"
                )
            wrong = np.argwhere(~((scales >= _LEAST) & np.isfinite(scales)))
            if wrong.size:
                layer, head, feature = wrong[0].tolist()
                raise InputError(
                    f"the {name} scale of layer {layer}, head {head}, feature {feature} is "
                    f"{scales[layer, head, feature]!s}, expected a finite number of at least {_LEAST:.3g}"
                )

    def check(self, sizes: Architecture) -> None:
        """Compares the shape with a model's.

        Raises:
            InputError: they are scales of another model.
        """
        expected = _shape(sizes)
        if self.key.shape != expected:
            raise InputError(f"scales of keys and values are {list(self.key.shape)}, the model needs {list(expected)}")

    @classmethod
    def open(cls, path: str | Path, sizes: Architecture) -> Self:
        """Reads what `save` wrote.

        Raises:
            PackageError: the file is missing, damaged, of another model, or holds a scale out of range.
        """
        # Of no use to a process with float32.
        from safetensors import SafetensorError
        from safetensors import deserialize as read

        path = Path(path)
        shape = list(_shape(sizes))
        nbytes = 4 * math.prod(shape)
        data = read_bytes(path, 2 * nbytes + _MAX_HEADER_BYTES)
        try:
            tensors = dict(read(data))  # type: ignore[no-untyped-call]  # it is compiled
        except (SafetensorError, ValueError) as error:
            raise PackageError(f"{path}: not a safetensors file: {' '.join(str(error).split()):.200}") from None
        if tensors.keys() != set(_NAMES):
            raise PackageError(f"{path}: holds {len(tensors)} tensors, expected exactly `key` and `value`")
        arrays = []
        for name in _NAMES:
            dtype, found = tensors[name]["dtype"], tensors[name]["shape"]
            if dtype != "F32" or found != shape:
                raise PackageError(f"{path}: {name} is {dtype:.10} {found!s:.80}, the model needs F32 {shape}")
            arrays.append(np.frombuffer(tensors[name]["data"], "<f4").astype(np.float32).reshape(shape))
        try:
            return cls(*arrays)
        except InputError as error:
            raise PackageError(f"{path}: {error}; write the file anew") from None

    def save(self, path: str | Path) -> None:
        """Writes a file that `open` reads: whole, or not at all.

        Raises:
            BitnetOnnxError: it cannot be written.
        """
        from safetensors.numpy import save

        path = Path(path)
        data = save({name: np.ascontiguousarray(getattr(self, name)) for name in _NAMES})
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            try:
                temporary.write_bytes(data)
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise BitnetOnnxError(f"{path}: cannot be written: {error.strerror or error}") from error


def packaged_scales(directory: Path, sizes: Architecture) -> KvScales | None:
    """The scales that a package holds, or None.

    Raises:
        PackageError: its file of scales is not usable, or points out of the package.
    """
    path = directory / KV_SCALES
    if not os.path.lexists(path):
        return None
    if not path.resolve().is_relative_to(directory.resolve()):
        raise PackageError(f"{path}: a link that leaves the package ({path.resolve()}); copy the file instead")
    return KvScales.open(path, sizes)


def check_kv_type(kv: str) -> None:
    """Refuses what keys and values cannot be held as.

    Raises:
        InputError: so it is.
    """
    if kv not in KV_TYPES:
        raise InputError(f"kv is {kv!r:.40}, expected one of {', '.join(KV_TYPES)}")


def scales_for(package: PackageInfo, device: Device, kv: KvType, *, threads: int | None = None) -> KvScales | None:
    """What a session needs to hold keys and values as `kv`: the scales of the package, or measured ones.

    Raises:
        InputError: there is no such type.
        BitnetOnnxError: as `packaged_scales` and `measure_kv_scales`.
    """
    check_kv_type(kv)
    if kv == "float32":
        return None
    scales = packaged_scales(package.directory, package.architecture)
    if scales is None:
        # It needs onnx, which takes a while to import.
        from bitnet_onnx.runtime.kv_calibration import measure_kv_scales

        started = time.perf_counter()
        scales = measure_kv_scales(package, device, threads=threads)
        logger.warning(
            "%s: scales of int8 keys and values measured in %.1f s; write_kv_scales saves that by keeping them in %s",
            package.directory,
            time.perf_counter() - started,
            KV_SCALES,
        )
    return scales


def _shape(sizes: Architecture) -> tuple[int, int, int]:
    return sizes.num_hidden_layers, sizes.num_key_value_heads, sizes.head_dim
