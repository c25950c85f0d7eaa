"""Values of a configuration file: their types, and the limits of each field."""

from __future__ import annotations

import difflib
import enum
import math
import os
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Final

from bitnet_onnx.errors import InputError
from bitnet_onnx.training.settings import Curve, Ramp

_MAX_COUNT: Final = 1_000_000_000
_MAX_FILES: Final = 10_000
_MAX_DEPTH: Final = 8
_SHOWN: Final = 60
#: Bytes of a file's name.
_MAX_NAME: Final = 255


@dataclass(frozen=True, slots=True)
class Limits:
    """What a number may be.

    Attributes:
        least: smallest value.
        most: largest value.
        above: `least` itself is too small.
        below: `most` itself is too large.
    """

    least: float = 0
    most: float = _MAX_COUNT
    above: bool = False
    below: bool = False

    def refusal(self, value: float) -> str | None:
        """What is wrong with a value."""
        if value < self.least or (self.above and value == self.least):
            return f"it must be {'above' if self.above else 'at least'} {_number(self.least)}"
        if value > self.most or (self.below and value == self.most):
            return f"it must be {'below' if self.below else 'at most'} {_number(self.most)}"
        return None


_SHARE: Final = Limits(0, 1)
_DECAY: Final = Limits(0, 1, below=True)
_FROM_ONE: Final = Limits(1)
_FROM_ZERO: Final = Limits(0)
_FACTOR: Final = Limits(0, 1e6)

#: By table and field; every number has an entry.
LIMITS: Final[Mapping[str, Limits]] = {
    "seed": Limits(0, (1 << 63) - 1),
    "model.activation_bits": Limits(0, 8),
    "data.holdout": Limits(0, 0.5),
    "data.length": Limits(2, 1 << 20),
    "loop.steps": _FROM_ONE,
    "loop.batch": Limits(1, 1 << 20),
    "loop.evaluate_every": _FROM_ZERO,
    "loop.evaluation_windows": _FROM_ONE,
    "loop.checkpoint_every": _FROM_ZERO,
    "loop.keep": _FROM_ONE,
    "loop.patience": _FROM_ZERO,
    "loop.rollbacks": _FROM_ZERO,
    "loop.log_every": _FROM_ONE,
    "loop.measure_every": _FROM_ZERO,
    "optimizer.learning_rate": Limits(0, 1e3, above=True),
    "optimizer.warmup": _FROM_ZERO,
    "optimizer.minimum": _SHARE,
    "optimizer.decay": _SHARE,
    "optimizer.weight_decay": Limits(0, 1e3),
    "optimizer.betas": _DECAY,
    "optimizer.epsilon": Limits(0, 1, above=True),
    "optimizer.momentum": _DECAY,
    "optimizer.clip": Limits(0, 1e9),
    "optimizer.pace": Limits(0, 1e3, above=True),
    "quantization.strength": _SHARE,
    "quantization.groups": Limits(1, 10_000),
    "quantization.stride": _FROM_ZERO,
    "losses.cross_entropy": _FACTOR,
    "losses.distillation": _FACTOR,
    "losses.temperature": Limits(0, 1e3, above=True),
    "losses.relation": _FACTOR,
    "losses.relation_layer": Limits(-10_000, 9_999),
    "losses.relation_heads": Limits(0, 1 << 16),
    "losses.grid": _FACTOR,
    "engine.threads": Limits(0, 1024),
    "engine.memory": Limits(0, 1 << 62),
    "engine.micro_batch": Limits(0, 1 << 20),
}
_STEPS: Final = {"begin": _FROM_ZERO, "steps": _FROM_ZERO}


class Values:
    """Reads the values of one file.

    Args:
        path: of the file; relative paths in it begin at its folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def error(self, text: str) -> InputError:
        """A refusal that begins with the file."""
        return InputError(f"{self.path}: {text}")

    def known(self, where: str, given: Iterable[str], names: Iterable[str], what: str = "key") -> None:
        """Refuse the first name that nothing here has."""
        names = list(names)
        for name in given:
            if name not in names:
                near = difflib.get_close_matches(name[:_SHOWN], names, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(names)}"
                raise self.error(f"{where and f'[{where}]: '}unknown {what} {name!r:.{_SHOWN}}; {hint}")

    def table(self, where: str, kind: type[Any], given: object) -> Any:
        """The settings of one table.

        Args:
            where: the table's name.
            kind: dataclass of the settings.
            given: what the file has.

        Raises:
            InputError: a key is unknown or missing, or a value is none that the field may have.
        """
        if not isinstance(given, dict):
            raise self._wrong(where, given, "a table")
        self.known(where, given, [field.name for field in fields(kind)])
        hints = typing.get_type_hints(kind)
        return kind(**{name: self.value(f"{where}.{name}", hints[name], value) for name, value in given.items()})

    def value(self, where: str, kind: Any, value: object) -> Any:
        """One value, of the type that its field has."""
        if isinstance(kind, types.UnionType):
            (kind,) = (one for one in typing.get_args(kind) if one is not types.NoneType)
        origin = typing.get_origin(kind)
        if origin is tuple:
            return self._list(where, typing.get_args(kind), value)
        if origin is not None:
            return self._free(where, value)
        if kind is Ramp:
            return self._ramp(where, value)
        if issubclass(kind, enum.StrEnum):
            return self._name(where, kind, value)
        if kind is Path:
            return self._path(where, value)
        if kind is str:
            return self._text(where, value)
        if kind is bool:
            if not isinstance(value, bool):
                raise self._wrong(where, value, "true or false")
            return value
        return self._number(where, kind, value, LIMITS[where])

    def _number(self, where: str, kind: type[int] | type[float], value: object, limits: Limits) -> int | float:
        if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
            raise self._wrong(where, value, "a whole number" if kind is int else "a number")
        if not -(1 << 63) <= value <= (1 << 63) or not math.isfinite(value):
            raise self._wrong(where, value, "a finite number of at most 64 bits")
        if refusal := limits.refusal(value):
            raise self.error(f"{where} is {_number(value)}: {refusal}")
        return kind(value)

    def _ramp(self, where: str, value: object) -> Ramp:
        """A number that stays, or a table of one that changes; with `steps` it does so linearly unless it says."""
        limits = LIMITS[where]
        if not isinstance(value, dict):
            return Ramp(float(self._number(where, float, value, limits)))
        names = [field.name for field in fields(Ramp)]
        self.known(where, value, names)
        if "end" not in value:
            raise self.error(f"{where}.end is missing")
        given: dict[str, Any] = {"curve": Curve.LINEAR if value.get("steps") else Curve.CONSTANT}
        for name, one in value.items():
            if name == "curve":
                given[name] = self._name(f"{where}.{name}", Curve, one)
            elif name in _STEPS:
                given[name] = self._number(f"{where}.{name}", int, one, _STEPS[name])
            else:
                given[name] = self._number(f"{where}.{name}", float, one, limits)
        ramp = Ramp(**given)
        if (ramp.curve is Curve.CONSTANT) == bool(ramp.steps):
            raise self.error(
                f"{where}.curve is {ramp.curve} with {ramp.steps} steps: "
                f"{'leave the steps out' if ramp.steps else 'say how many steps it takes'}"
            )
        return ramp

    def _list(self, where: str, kinds: tuple[Any, ...], value: object) -> tuple[Any, ...]:
        if kinds[-1] is Ellipsis:
            if not isinstance(value, list):
                value = [value]
            if len(value) > _MAX_FILES:
                raise self.error(f"{where} has {len(value)} entries, above the limit of {_MAX_FILES}")
            return tuple(self.value(where, kinds[0], one) for one in value)
        if not isinstance(value, list) or len(value) != len(kinds):
            raise self._wrong(where, value, f"a list of {len(kinds)} numbers")
        return tuple(self.value(where, kind, one) for kind, one in zip(kinds, value, strict=True))

    def _name(self, where: str, kind: type[enum.StrEnum], value: object) -> enum.StrEnum:
        names = [str(one) for one in kind]
        if not isinstance(value, str) or value not in names:
            near = difflib.get_close_matches(str(value)[:_SHOWN], names, n=1, cutoff=0.5)
            raise self._wrong(where, value, f"{near[0]}" if near else f"one of {', '.join(names)}")
        return kind(value)

    def _text(self, where: str, value: object) -> str:
        if not isinstance(value, str) or not value or "\0" in value:
            raise self._wrong(where, value, "a string that is not empty")
        return value

    def _path(self, where: str, value: object) -> Path:
        path = self.beside(self._text(where, value))
        if path is None:
            raise self._wrong(where, value, "a path that a file system takes")
        return path

    def beside(self, name: str) -> Path | None:
        """A path that the file names; None where no file system takes it."""
        try:
            path = self.path.resolve().parent / Path(name).expanduser()
        except RuntimeError:
            return None
        return None if max(len(os.fsencode(part)) for part in path.parts) > _MAX_NAME else path

    def _free(self, where: str, value: object) -> dict[str, object]:
        """A table whose keys are for others to judge: what JSON has, not too deep."""
        if not isinstance(value, dict):
            raise self._wrong(where, value, "a table")
        self._plain(where, value, _MAX_DEPTH)
        return value

    def _plain(self, where: str, value: object, depth: int) -> None:
        if not depth:
            raise self.error(f"{where:.{_SHOWN}} nests deeper than {_MAX_DEPTH} levels")
        if isinstance(value, dict):
            for name, one in value.items():
                self._plain(f"{where}.{name}", one, depth - 1)
        elif isinstance(value, list):
            for one in value:
                self._plain(where, one, depth - 1)
        elif isinstance(value, float) and not math.isfinite(value):
            raise self._wrong(f"{where:.{_SHOWN}}", value, "a finite number")
        elif not isinstance(value, str | int | float):
            raise self._wrong(f"{where:.{_SHOWN}}", value, "a string, a number, true, false, a list or a table")

    def _wrong(self, where: str, value: object, expected: str) -> InputError:
        shown = "a table" if isinstance(value, dict) else f"{value!r:.{_SHOWN}}"
        return self.error(f"{where} is {shown}: expected {expected}")


def numbers(kind: type[Any], where: str = "") -> list[str]:
    """Names of all fields of numbers below a dataclass; each needs `LIMITS`."""
    found = []
    for name, hint in typing.get_type_hints(kind).items():
        inner = hint
        if isinstance(hint, types.UnionType):
            (inner,) = (one for one in typing.get_args(hint) if one is not types.NoneType)
        if is_dataclass(inner) and inner is not Ramp:
            found += numbers(typing.cast(type[Any], inner), f"{name}.")
        elif inner in (int, float, Ramp) or typing.get_args(inner)[:1] == (float,):
            found.append(f"{where}{name}")
    return found


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"
