"""What a JSON schema may hold to be enforced whole: each keyword known, each reference found, its size bounded."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from urllib.parse import unquote

from bitnet_onnx.errors import InputError, UnsupportedError
from bitnet_onnx.json_input import load_object, shown

_MAX_BYTES = 256 * 1024
_MAX_NESTING = 32
_MAX_SCHEMAS = 5_000
#: Far more digits than money or time has; a divisor costs as many states as it is large.
_MAX_MULTIPLE = 10_000
_MAX_DECIMALS = 6

_SCHEMAS_BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
_SCHEMA_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_SCHEMAS = ("items", "additionalItems", "additionalProperties")
_LIMITS = ("minItems", "maxItems", "minProperties", "maxProperties", "minLength", "maxLength")
_VALUES = (
    *("$ref", "const", "enum", "type", "required", "pattern", "format"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
)
#: These say nothing about what is valid.
_NOTES = (
    *("$schema", "$id", "$comment", "title", "description", "default", "examples", "deprecated", "discriminator"),
    *("readOnly", "writeOnly", "contentMediaType", "contentEncoding"),
)
_KNOWN = frozenset((*_SCHEMAS_BY_NAME, *_SCHEMA_LISTS, *_SCHEMAS, *_LIMITS, *_VALUES, *_NOTES))


def check_schema(schema: object, where: str) -> dict[str, object]:
    """A copy of `schema`, every keyword of which can be enforced.

    Args:
        schema: an object of JSON values.
        where: what messages call it, such as `response_format.json_schema.schema`.

    Raises:
        InputError: no object of JSON values; too large or too deep; a reference leads nowhere, out of the schema, or
            only to itself.
        UnsupportedError: a keyword or value that could not be enforced.
    """
    if not isinstance(schema, Mapping):
        raise InputError(f"{where} is a {type(schema).__name__}, expected an object")
    try:
        data = json.dumps(schema, allow_nan=False).encode()
    except RecursionError:
        raise InputError(f"{where}: the schema nests too deep") from None
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: not JSON: {error}") from None
    copy = load_object(data, where, max_bytes=_MAX_BYTES)
    found: dict[str, object] = {}
    divisors: list[Decimal] = []
    for pointer, node in _walk(copy, where):
        found[pointer] = node
        if isinstance(node, dict):
            _check_node(node, pointer, where, divisors)
    _check_references(found, where)
    _check_divisors(divisors, where)
    return copy


def moved_references(schema: dict[str, object], prefix: str) -> dict[str, object]:
    """`schema`, which `check_schema` gave, for a place within another one: its references begin with `prefix`.

    Changes `schema` itself.
    """
    for _, node in _walk(schema, ""):
        if isinstance(node, dict):
            if "$ref" in node:
                node["$ref"] = prefix + str(node["$ref"]).removeprefix("#")
            # Names and drafts belong to the root.
            node.pop("$id", None)
            node.pop("$schema", None)
    return schema


def _walk(root: object, where: str) -> Iterator[tuple[str, object]]:
    """Every schema in `root` with its pointer, without recursion."""
    pending: list[tuple[str, object, int]] = [("#", root, 0)]
    count = 0
    while pending:
        pointer, node, depth = pending.pop()
        count += 1
        if count > _MAX_SCHEMAS or depth > _MAX_NESTING:
            raise InputError(
                f"{where}: more than {_MAX_SCHEMAS} schemas, or nested deeper than {_MAX_NESTING}, at {shown(pointer)}"
            )
        if not isinstance(node, dict | bool):
            raise InputError(f"{where}: {shown(pointer)} is no schema: {type(node).__name__}")
        yield pointer, node
        if isinstance(node, bool):
            continue
        for keyword, value in node.items():
            parts: list[tuple[str, object]] = []
            if keyword in _SCHEMAS_BY_NAME:
                if not isinstance(value, dict):
                    raise InputError(f"{where}: {keyword} at {shown(pointer)} is no object")
                parts = [(f"/{_escaped(name)}", part) for name, part in value.items()]
            elif keyword in _SCHEMA_LISTS and isinstance(value, list):
                parts = [(f"/{index}", part) for index, part in enumerate(value)]
            elif keyword in _SCHEMAS:
                parts = [("", value)]
            elif keyword in _SCHEMA_LISTS:
                raise InputError(f"{where}: {keyword} at {shown(pointer)} is no list")
            pending += [(f"{pointer}/{_escaped(keyword)}{name}", part, depth + 1) for name, part in parts]


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _check_node(node: dict[str, object], pointer: str, where: str, divisors: list[Decimal]) -> None:
    for keyword, value in node.items():
        if keyword not in _KNOWN:
            raise UnsupportedError(f"{where}: keyword {shown(keyword)} at {shown(pointer)} is not supported")
        if keyword in _LIMITS and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31):
            raise InputError(f"{where}: {keyword} at {shown(pointer)} is {value!r:.40}, expected 0 to 2147483647")
    if "$id" in node and pointer != "#":
        raise UnsupportedError(f"{where}: $id at {shown(pointer)} is supported at the root only")
    if "multipleOf" in node:
        divisor = node["multipleOf"]
        if isinstance(divisor, bool) or not isinstance(divisor, int | float) or divisor <= 0:
            raise InputError(f"{where}: multipleOf at {shown(pointer)} is {divisor!r:.40}, expected a number above 0")
        divisors.append(Decimal(repr(divisor)))
    required = node.get("required", [])
    least = node.get("minProperties", 0)
    # Nothing keeps a free name from coming twice, so that of several only one is sure to be there.
    if isinstance(required, list) and isinstance(least, int) and least > max(1, len(required)):
        raise UnsupportedError(
            f"{where}: minProperties {least} at {shown(pointer)} is not supported above the number of required ones"
        )


def _check_references(found: dict[str, object], where: str) -> None:
    for pointer, node in found.items():
        seen = {pointer}
        at = pointer
        while isinstance(node, dict) and "$ref" in node:
            target = node["$ref"]
            if not isinstance(target, str) or not target.startswith("#"):
                raise UnsupportedError(
                    f"{where}: $ref {str(target)!r:.80} at {shown(at)} leads out of the schema; only #/... is supported"
                )
            at = unquote(target).rstrip("/")
            if at not in found:
                raise InputError(f"{where}: $ref {shown(target)} leads to no schema")
            if at in seen:
                raise InputError(f"{where}: $ref {shown(target)} leads back to itself")
            seen.add(at)
            node = found[at]


def _check_divisors(divisors: list[Decimal], where: str) -> None:
    """Schemas that are joined need the least common multiple, whose automaton has as many states."""
    decimals = [max(0, -int(divisor.normalize().as_tuple().exponent)) for divisor in divisors]
    most = max(decimals, default=0)
    if most <= _MAX_DECIMALS and all(divisor < 10**9 for divisor in divisors):
        common = math.lcm(*(int(divisor.scaleb(most)) for divisor in divisors))
        if common <= _MAX_MULTIPLE:
            return
    raise UnsupportedError(
        f"{where}: multipleOf needs a common multiple above {_MAX_MULTIPLE} or more than {_MAX_DECIMALS} decimals"
    )
