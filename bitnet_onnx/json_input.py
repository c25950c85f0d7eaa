"""JSON from strangers: bounded in size, depth and numbers, with no key given twice."""

from __future__ import annotations

import json
import math
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from bitnet_onnx.errors import InputError

#: Real files nest fewer than ten levels deep; the parser itself recurses, so this is checked before it runs.
MAX_DEPTH = 64
#: Commas, lists and objects: each takes up to 215 bytes on the way to Python. A tokenizer.json with 262 thousand tokens
#: and 514 thousand merges as pairs, the largest in use, has 1.9 million.
MAX_ITEMS = 2_500_000

_MAX_SHOWN = 80
_MAX_INTEGER_DIGITS = 20  # every 64-bit integer fits, and int() on more digits takes quadratic time

_STEP = np.zeros(256, np.int8)
_STEP[list(b"[{")] = 1
_STEP[list(b"]}")] = -1


def shown(text: str) -> str:
    """`text` from a file, fit for one line of a message: quoted, escaped and cut."""
    return ascii(text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "...")


def load_object(data: bytes, source: str, *, max_bytes: int, error: type[InputError] = InputError) -> dict[str, object]:
    """Parse a JSON object.

    Args:
        data: the file's content.
        source: what messages call the file.
        max_bytes: the most that `data` may hold.
        error: the class to raise.

    Raises:
        error: more than `max_bytes` or `MAX_ITEMS`, deeper than `MAX_DEPTH`, not UTF-8, not JSON, not an object,
            a duplicate key, NaN or Infinity, or an integer beyond 64 bits.
    """
    if len(data) > max_bytes:
        raise error(f"{source}: {len(data)} bytes of JSON exceed the limit of {max_bytes}")
    check_structure(outside_strings(data), source, error)

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        result = dict(items)
        if len(result) != len(items):
            seen: set[str] = set()
            twice = next(key for key, _ in items if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise error(f"{source}: key {shown(twice)} appears twice in one object")
        return result

    def integer(text: str) -> int:
        value = int(text) if len(text) <= _MAX_INTEGER_DIGITS else 1 << 64
        if not -(1 << 63) <= value < 1 << 64:
            raise error(f"{source}: integer {shown(text)} does not fit 64 bits")
        return value

    def real(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise error(f"{source}: number {shown(text)} is beyond the range of a double")
        return value

    def constant(text: str) -> NoReturn:
        raise error(f"{source}: {text} is not JSON; write a finite number or null")

    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=pairs,
            parse_int=integer,
            parse_float=real,
            parse_constant=constant,
        )
    except UnicodeDecodeError as cause:
        raise error(f"{source}: byte {cause.start} is not UTF-8") from cause
    except json.JSONDecodeError as cause:
        raise error(f"{source}: not JSON: {cause.msg} at character {cause.pos}") from cause
    if not isinstance(value, dict):
        raise error(f"{source}: a JSON object is expected, this is {type(value).__name__}")
    return value


def outside_strings(data: bytes) -> npt.NDArray[np.uint8]:
    """The bytes of JSON that are in no string, but for the quotes that end them; of anything else, some bytes."""
    # Without escapes every quote begins or ends a string. A backslash outside of strings ends the parser's work.
    plain = data.replace(rb"\\", b"  ").replace(rb"\"", b"  ") if b"\\" in data else data
    characters = np.frombuffer(plain, np.uint8)
    outside: npt.NDArray[np.uint8] = characters[~np.logical_xor.accumulate(characters == ord('"'))]
    return outside


def check_structure(outside: npt.NDArray[np.uint8], source: str, error: type[InputError]) -> None:
    """Refuse JSON that is too deep or too large for its parser, by its `outside_strings`.

    Raises:
        error: deeper than `MAX_DEPTH`, or more than `MAX_ITEMS`.
    """
    steps = _STEP[outside]
    steps = steps[steps != 0]
    if steps.size and int(np.cumsum(steps, dtype=np.int32).max()) > MAX_DEPTH:
        raise error(f"{source}: JSON nests deeper than {MAX_DEPTH} levels")
    items = int(np.count_nonzero(outside == ord(",")) + np.count_nonzero(steps > 0))
    if items > MAX_ITEMS:
        raise error(f"{source}: JSON of {items} values exceeds the limit of {MAX_ITEMS}")
