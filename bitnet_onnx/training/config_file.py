"""The configuration of a run as a TOML file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

from bitnet_onnx.errors import InputError
from bitnet_onnx.toml_input import load_toml, toml_string
from bitnet_onnx.training._config_values import Values
from bitnet_onnx.training.config_checks import check_settings
from bitnet_onnx.training.settings import (
    DataSettings,
    EngineSettings,
    LoopSettings,
    LossSettings,
    ModelSettings,
    OptimizerSettings,
    QuantizationSettings,
    Ramp,
    TrainingSettings,
)

_MAX_BYTES: Final = 1 << 20
_TABLES: Final[Mapping[str, type[Any]]] = {
    "model": ModelSettings,
    "data": DataSettings,
    "loop": LoopSettings,
    "optimizer": OptimizerSettings,
    "quantization": QuantizationSettings,
    "losses": LossSettings,
    "engine": EngineSettings,
}
#: Where a path or a name of the zoo stands.
_MODELS: Final = {("model", "source"), ("losses", "teacher")}
_REQUIRED: Final = ("output", "model", "data", "data.train", "loop", "loop.steps")


def read_config(path: str | Path) -> TrainingSettings:
    """The settings in a file.

    Tables are named as the attributes of `TrainingSettings`, keys as those of the tables' settings; `output` and `seed`
    stand before them. A number that may change is a number, or a table with the attributes of `Ramp`. Paths begin at
    the file's folder.

    Raises:
        InputError: the file cannot be read or is not TOML; a key is unknown; a value, alone or with others, cannot be;
            or a file that it names is not there.
    """
    path = Path(path)
    document = load_toml(path, max_bytes=_MAX_BYTES)
    values = Values(path)
    values.known("", document, ["output", "seed", *_TABLES])
    for name in _REQUIRED:
        table, _, key = name.rpartition(".")
        within = document.get(table) if table else document
        if isinstance(within, dict) and key not in within:
            raise values.error(f"{name} is missing")
    settings = TrainingSettings(
        values.value("output", Path, document["output"]),
        seed=values.value("seed", int, document.get("seed", 0)),
        **{name: values.table(name, _TABLES[name], document[name]) for name in document if name in _TABLES},
    )
    settings = replace(
        settings,
        model=replace(settings.model, source=_model(values, settings.model.source)),
        losses=replace(settings.losses, teacher=_model(values, settings.losses.teacher)),
    )
    check_settings(settings, values.error)
    return settings


def write_config(settings: TrainingSettings) -> str:
    """The file that `read_config` reads back as the same settings; nothing is left to defaults, paths are absolute."""
    lines = [f"output = {_toml(settings.output.absolute())}", f"seed = {settings.seed}"]
    for name in _TABLES:
        table = getattr(settings, name)
        given = [(field.name, getattr(table, field.name)) for field in fields(table)]
        lines += ["", f"[{name}]"]
        lines += [f"{key} = {_toml(value)}" for key, value in given if value is not None]
    return "\n".join(lines) + "\n"


def flat(settings: TrainingSettings) -> dict[str, str]:
    """Every field as `table.field` with its value as text, equal where the values are; `output` is left out.

    Of paths only the names are there: a run may be moved with its files.
    """
    found = {"seed": str(settings.seed)}
    for name in _TABLES:
        table = getattr(settings, name)
        for field in fields(table):
            value = getattr(table, field.name)
            if (name, field.name) in _MODELS and value is not None:
                value = Path(value).name
            found[f"{name}.{field.name}"] = _toml(_names(value))
    return found


def _names(value: object) -> object:
    if isinstance(value, Path):
        return value.name
    return tuple(map(_names, value)) if isinstance(value, tuple) else value


def _model(values: Values, name: str | None) -> str | None:
    """A model as a path where there is one, and otherwise a name of the zoo."""
    if name is None:
        return None
    path = values.beside(name)
    return str(path) if path is not None and os.path.lexists(path) else name


def _toml(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return toml_string(str(value))
        case Path():
            return toml_string(str(value.absolute()))
        case Ramp():
            return _inline({field.name: getattr(value, field.name) for field in fields(value)})
        case Mapping():
            return _inline(value)
        case list() | tuple():
            lines = ",\n".join(f"    {_toml(one)}" for one in value)
            return f"[\n{lines},\n]" if value and isinstance(value[0], Path) else f"[{', '.join(map(_toml, value))}]"
        case _:
            raise InputError(f"{type(value).__name__} has no place in a configuration")


def _inline(table: Mapping[str, object]) -> str:
    return f"{{ {', '.join(f'{toml_string(key)} = {_toml(value)}' for key, value in table.items())} }}"
