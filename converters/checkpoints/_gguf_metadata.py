"""Typed access to GGUF metadata."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import TypeAlias, TypeVar, overload

from bitnet_onnx.errors import CheckpointError
from bitnet_onnx.json_input import shown

Value: TypeAlias = str | int | float | bool | list[str] | list[int] | list[float] | list[bool]

_T = TypeVar("_T")


class Metadata:
    """The key-value pairs of a GGUF file; a value of another type than asked for is a CheckpointError."""

    def __init__(self, values: Mapping[str, Value], source: str, prefix: str = "") -> None:
        self.values = values
        #: The file, for messages.
        self.source = source
        #: What stands before every key that is asked for.
        self.prefix = prefix

    def section(self, prefix: str) -> Metadata:
        """The same pairs, asked for by what follows `prefix` in their keys."""
        return Metadata(self.values, self.source, prefix)

    def __contains__(self, key: str) -> bool:
        return self.prefix + key in self.values

    def names(self) -> Iterator[str]:
        """What follows the prefix, for all keys that begin with it."""
        return (key.removeprefix(self.prefix) for key in self.values if key.startswith(self.prefix))

    def integer(self, key: str, default: int | None = None) -> int:
        """An integer from 0 to 2^31 - 1."""
        value = self._get(key, default)
        if type(value) is not int or not 0 <= value < 1 << 31:
            raise self._wrong(key, value, "an integer from 0 to 2^31 - 1")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above zero."""
        value = self._get(key, default)
        if type(value) not in {int, float} or not 0 < value < float("inf"):  # type: ignore[operator]
            raise self._wrong(key, value, "a finite number above zero")
        return float(value)  # type: ignore[arg-type]

    def flag(self, key: str, default: bool) -> bool:
        """A boolean."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "a boolean")
        return value

    @overload
    def text(self, key: str) -> str: ...

    @overload
    def text(self, key: str, default: _T) -> str | _T: ...

    def text(self, key: str, default: object = ...) -> object:
        """A string; the default may be of any type."""
        if key not in self and default is not ...:
            return default
        value = self._get(key, None)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def texts(self, key: str) -> list[str]:
        """A list of strings."""
        value = self._get(key, None)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(key, value, "a list of strings")
        return [item for item in value if isinstance(item, str)]

    def flags(self, key: str) -> list[bool]:
        """A list of booleans."""
        value = self._get(key, None)
        if not isinstance(value, list) or not all(isinstance(item, bool) for item in value):
            raise self._wrong(key, value, "a list of booleans")
        return [item for item in value if isinstance(item, bool)]

    def integers(self, key: str) -> list[int]:
        """A list of integers."""
        value = self._get(key, None)
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise self._wrong(key, value, "a list of integers")
        return [item for item in value if isinstance(item, int)]

    def numbers(self, key: str) -> list[float]:
        """A list of finite floats."""
        value = self._get(key, None)
        if not isinstance(value, list) or not all(type(item) is float and isfinite(item) for item in value):
            raise self._wrong(key, value, "a list of finite floats")
        return [item for item in value if isinstance(item, float)]

    def _get(self, key: str, default: Value | None) -> Value:
        value = self.values.get(self.prefix + key, default)
        if value is None:
            raise CheckpointError(f"{self.source}: metadata has no {self.prefix}{key}")
        return value

    def _wrong(self, key: str, value: Value, expected: str) -> CheckpointError:
        what = f"a list of {len(value)}" if isinstance(value, list) else shown(str(value))
        return CheckpointError(f"{self.source}: metadata {self.prefix}{key} is {what}, expected {expected}")
