"""A file of statistics: safetensors, one set of tensors for each input of linear layers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bitnet_onnx.calibration.sensitivity_table import Unit, read_sensitivity, sensitivity_json
from bitnet_onnx.errors import InputError
from bitnet_onnx.quantization.statistics import InputStatistics
from bitnet_onnx.quantized import FloatArray

T = TypeVar("T")

_FORMAT: Final = "bitnet-onnx statistics 1"
_NAME: Final = "format"
_SENSITIVITY: Final = "sensitivity"
#: Far above any model in use, far below what a header could claim.
_MAX_INPUTS: Final = 1 << 16
_MAX_FEATURES: Final = 1 << 20
_MAX_BLOCKS: Final = 1 << 12


@dataclass(frozen=True, slots=True, eq=False)
class ModelStatistics:
    """Statistics of all linear layers of a model; a `Calibration`.

    Attributes:
        inputs: by the first of the roles that read an input.
        roles: which input each role reads.
        key_peak: `[layers, kv_heads, head_dim]`, the largest magnitude of each feature of cached keys; perhaps padded
            as the graph has them.
        value_peak: the same of values.
        about: how they were collected, and of which model.
        sensitivity: what precisions do to the output, if it was measured.
    """

    inputs: Mapping[str, InputStatistics]
    roles: Mapping[str, str]
    key_peak: FloatArray
    value_peak: FloatArray
    about: Mapping[str, str]
    sensitivity: tuple[Unit, ...] = ()

    def of(self, role: str) -> InputStatistics | None:
        """Those of one layer's input, or None."""
        name = self.roles.get(role)
        return None if name is None else self.inputs[name]

    def save(self, path: Path) -> None:
        """Write a file; it appears when it is complete.

        Raises:
            InputError: it cannot be written.
        """
        tensors: dict[str, np.ndarray] = {"kv.key_peak": self.key_peak, "kv.value_peak": self.value_peak}
        for name, one in self.inputs.items():
            tensors |= {f"{name}.peak": one.peak, f"{name}.mean": one.mean, f"{name}.sample": one.sample}
            tensors |= {f"{name}.moment.{index}": block for index, block in enumerate(one.moment)}
        tokens = {name: one.tokens for name, one in self.inputs.items()}
        metadata = {
            _NAME: _FORMAT,
            **self.about,
            _SENSITIVITY: sensitivity_json(self.sensitivity),
            "roles": json.dumps(self.roles),
            "input_tokens": json.dumps(tokens),
        }
        work = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, work, metadata)
            work.replace(path)
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None
        except SafetensorError as error:
            raise InputError(f"{path}: cannot be written: {error}") from None
        finally:
            work.unlink(missing_ok=True)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read a file.

        Raises:
            InputError: it cannot be read, or is no file of statistics.
        """
        if not path.is_file():
            raise InputError(f"{path}: no such file; `bitnet-onnx calibrate` makes one")
        try:
            with safe_open(path, "numpy") as file:
                return cls._read(path, file)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: not a file of statistics: {' '.join(str(error).split()):.200}") from None

    @classmethod
    def _read(cls, path: Path, file: Any) -> Self:  # the library has no types
        metadata = file.metadata() or {}
        if metadata.get(_NAME) != _FORMAT:
            raise InputError(
                f"{path}: format is {metadata.get(_NAME)!r:.60}, expected {_FORMAT!r}; "
                f"`bitnet-onnx calibrate` makes one"
            )
        roles, tokens = _names(path, metadata, "roles", str), _names(path, metadata, "input_tokens", int)
        names = set(file.keys())

        def tensor(name: str, dimensions: int) -> FloatArray:
            if name not in names:
                raise InputError(f"{path}: tensor {name:.80} is missing")
            part = file.get_slice(name)
            shape = part.get_shape()
            if part.get_dtype() != "F32" or len(shape) != dimensions or max(shape, default=0) > _MAX_FEATURES:
                raise InputError(
                    f"{path}: tensor {name:.80} is {part.get_dtype()} {shape}, expected F32 of {dimensions} dimensions"
                )
            values: FloatArray = file.get_tensor(name)
            if not np.isfinite(values).all():
                raise InputError(f"{path}: tensor {name:.80} holds NaN or infinity; collect the statistics again")
            return values

        inputs: dict[str, InputStatistics] = {}
        for name in dict.fromkeys(roles.values()):
            blocks = [f"{name}.moment.{index}" for index in range(_MAX_BLOCKS)]
            blocks = blocks[: next((i for i, block in enumerate(blocks) if block not in names), _MAX_BLOCKS)]
            try:
                inputs[name] = InputStatistics(
                    int(tokens.get(name, 0)),
                    tensor(f"{name}.peak", 1),
                    tensor(f"{name}.mean", 1),
                    tuple(tensor(block, 2) for block in blocks),
                    tensor(f"{name}.sample", 2),
                )
            except InputError as error:
                if str(error).startswith(str(path)):
                    raise
                raise InputError(f"{path}: {name:.80}: {error}") from None
        known = {_NAME, _SENSITIVITY, "roles", "input_tokens"}
        about = {key: value for key, value in metadata.items() if key not in known}
        units = read_sensitivity(metadata.get(_SENSITIVITY, "[]"), str(path))
        return cls(inputs, roles, tensor("kv.key_peak", 3), tensor("kv.value_peak", 3), about, units)


def open_statistics(path: str | Path) -> ModelStatistics:
    """The statistics in a file; see `ModelStatistics.open`."""
    return ModelStatistics.open(Path(path))


def _names(path: Path, metadata: Mapping[str, str], key: str, kind: type[T]) -> dict[str, T]:
    try:
        values = json.loads(metadata.get(key, ""))
    except (ValueError, RecursionError):
        values = None
    if (
        not isinstance(values, dict)
        or len(values) > _MAX_INPUTS
        or not all(type(value) is kind for value in values.values())
    ):
        raise InputError(f"{path}: metadata {key} is not a JSON object of {kind.__name__}")
    return values
