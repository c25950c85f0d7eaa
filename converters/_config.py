"""Typed access to a `config.json` that nobody vouches for."""

from __future__ import annotations

import math
from collections.abc import Mapping

from bitnet_onnx.errors import CheckpointError

#: Largest size that any field may claim; a model beyond it does not exist and would only exhaust memory.
_LIMIT = 1 << 31


class Config:
    """A mapping whose getters check types and ranges and name the field when they refuse.

    Args:
        fields: the parsed JSON object.
        where: what to call it in messages, e.g. `config.json` or `config.json: rope_scaling`.
    """

    def __init__(self, fields: Mapping[str, object], where: str = "config.json") -> None:
        self._fields = fields
        self._where = where

    def __contains__(self, name: str) -> bool:
        return self._fields.get(name) is not None

    @property
    def fields(self) -> Mapping[str, object]:
        """The fields as they are, unchecked."""
        return self._fields

    def integer(self, name: str, default: int | None = None) -> int:
        """A positive whole number; absent or null gives `default`, or an error without one."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < _LIMIT:
            raise self._wrong(name, value, f"a whole number from 1 to {_LIMIT - 1}")
        return value

    def count(self, name: str, default: int | None = None) -> int:
        """A whole number from zero; absent or null gives `default`, or an error without one."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _LIMIT:
            raise self._wrong(name, value, f"a whole number from 0 to {_LIMIT - 1}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number greater than zero."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(name, value, "a number")
        try:
            result = float(value)
        except OverflowError:
            result = math.inf
        if not math.isfinite(result) or result <= 0:
            raise self._wrong(name, value, "a finite number greater than 0")
        return result

    def optional_number(self, name: str, default: float | None) -> float | None:
        """A number like `number`, where null does not mean the default but that there is none."""
        if name in self._fields and self._fields[name] is None:
            return None
        return None if default is None and name not in self else self.number(name, default)

    def optional_integer(self, name: str, default: int | None) -> int | None:
        """A whole number like `integer`, where null does not mean the default but that there is none."""
        if name in self._fields and self._fields[name] is None:
            return None
        return None if default is None and name not in self else self.integer(name, default)

    def boolean(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def string(self, name: str, default: str | None = None) -> str:
        """A string."""
        value = self._value(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, value, "a string")
        return value

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of finite numbers greater than zero; absent gives an empty one."""
        value = self._value(name, [])
        if not isinstance(value, list | tuple):
            raise self._wrong(name, value, "a list of numbers")
        return tuple(
            Config({str(index): item}, f"{self._where}: {name}").number(str(index)) for index, item in enumerate(value)
        )

    def strings(self, name: str) -> tuple[str, ...]:
        """A list of strings; absent gives an empty one."""
        value = self._value(name, [])
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise self._wrong(name, value, "a list of strings")
        return tuple(value)

    def flags(self, name: str) -> tuple[bool, ...]:
        """A list of zeros and ones; absent gives an empty one."""
        value = self._value(name, [])
        if not isinstance(value, list | tuple) or not all(isinstance(item, int) and item in {0, 1} for item in value):
            raise self._wrong(name, value, "a list of 0 and 1")
        return tuple(bool(item) for item in value)

    def with_absent(self, **defaults: object) -> Config:
        """The same fields, with values for those that are absent; what is null stays null."""
        return Config({**defaults, **self._fields}, self._where)

    def with_defaults(self, **defaults: object) -> Config:
        """The same fields, with values for those that are absent or null."""
        present = {name: value for name, value in self._fields.items() if value is not None}
        return Config({**defaults, **present}, self._where)

    def with_values(self, **values: object) -> Config:
        """The same fields, with other values for some."""
        return Config({**self._fields, **values}, self._where)

    def child(self, name: str) -> Config | None:
        """A nested object, or None where it is absent."""
        value = self._fields.get(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self._wrong(name, value, "an object")
        return Config(value, f"{self._where}: {name}")

    def _value(self, name: str, default: object) -> object:
        value = self._fields.get(name)
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(f"{self._where}: {name} is missing")
        return value

    def _wrong(self, name: str, value: object, expected: str) -> CheckpointError:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return CheckpointError(f"{self._where}: {name} is {shown}: expected {expected}")
