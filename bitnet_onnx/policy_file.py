"""A policy as a TOML file that can be read, edited and given back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

from bitnet_onnx.errors import InputError
from bitnet_onnx.policy import Policy, Precision, Weights
from bitnet_onnx.quantization.method import MethodName
from bitnet_onnx.toml_input import load_toml, toml_string

_MAX_BYTES: Final = 4 << 20
_MAX_OVERRIDES: Final = 1 << 16
#: Globs are matched with every role.
_MAX_GLOB: Final = 200
_TABLES: Final = ("blocks", "head", "layers")
_KEYS: Final = tuple(field.name for field in fields(Precision))


def read_policy(path: str | Path) -> Policy:
    """The policy in a file.

    Tables `blocks` and `head` hold the precision of the linear layers of the blocks, and of the vocabulary head and the
    embedding; `layers` has globs over roles as keys (`"layers.*.mlp.down_proj"`), whose values change what the two say,
    the last match deciding. Keys of a precision are the attributes of `Precision`.

    Raises:
        InputError: the file cannot be read, is not TOML, or has a key or value that means nothing.
    """
    path = Path(path)
    document = load_toml(path, max_bytes=_MAX_BYTES)
    if unknown := sorted(document.keys() - set(_TABLES)):
        raise InputError(f"{path}: unknown table {unknown[0]!r:.60}; known are {', '.join(_TABLES)}")
    blocks = _precision(path, "blocks", _table(path, document, "blocks"), Policy().default)
    head = _precision(path, "head", _table(path, document, "head"), Policy().head)
    layers = _table(path, document, "layers")
    if len(layers) > _MAX_OVERRIDES:
        raise InputError(f"{path}: {len(layers)} entries in layers, above the limit of {_MAX_OVERRIDES}")
    policy = Policy(blocks, head)
    overrides: list[tuple[str, Precision]] = []
    for glob, changes in layers.items():
        if not isinstance(changes, dict) or len(glob) > _MAX_GLOB:
            raise InputError(f'{path}: layers {glob!r:.60} is no table; write {{ weights = "int4" }}')
        overrides.append((glob, _precision(path, f"layers {glob!r:.60}", changes, policy.base(glob))))
    try:
        return replace(policy, overrides=tuple(overrides))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def policy_text(policy: Policy, comment: str = "") -> str:
    """The file that `read_policy` reads back as the same policy.

    Args:
        policy: any.
        comment: lines for its beginning.
    """
    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    for name, precision, base in (
        ("blocks", policy.default, Policy().default),
        ("head", policy.head, Policy().head),
    ):
        lines += ["", f"[{name}]", *_changes(precision, base, always=("weights",))]
    if policy.overrides:
        lines += ["", "[layers]"]
    for glob, precision in policy.overrides:
        changes = ", ".join(_changes(precision, policy.base(glob), always=("weights",)))
        lines.append(f"{toml_string(glob)} = {{ {changes} }}")
    return "\n".join(lines).lstrip("\n") + "\n"


def _table(path: Path, document: Mapping[str, Any], name: str) -> dict[str, Any]:
    table = document.get(name, {})
    if not isinstance(table, dict):
        raise InputError(f"{path}: {name} is {table!r:.60}, expected a table")
    return table


def _precision(path: Path, where: str, changes: Mapping[str, Any], base: Precision) -> Precision:
    known: dict[str, Any] = {}
    for key, value in changes.items():
        if key not in _KEYS:
            raise InputError(f"{path}: {where}: unknown key {key!r:.60}; known are {', '.join(_KEYS)}")
        names = {"weights": Weights, "otherwise": Weights, "method": MethodName}.get(key)
        if names is not None and value not in list(names):
            raise InputError(f"{path}: {where}: {key} is {value!r:.60}; known are {', '.join(names)}")
        if names is None and type(value) is not int:
            raise InputError(f"{path}: {where}: {key} is {value!r:.60}, expected an integer")
        known[key] = value if names is None else names(value)
    try:
        return replace(base, **known)
    except InputError as error:
        raise InputError(f"{path}: {where}: {error}") from None


def _changes(precision: Precision, base: Precision, always: tuple[str, ...] = ()) -> list[str]:
    lines = []
    for key in _KEYS:
        value = getattr(precision, key)
        if key in always or value != getattr(base, key):
            lines.append(f"{key} = {value if isinstance(value, int) else toml_string(str(value))}")
    return lines
