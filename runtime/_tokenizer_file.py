"""Whether a package's tokenizer.json, which may be a stranger's, may be loaded in this process.

The library that reads it aborts the process where memory ends, and a hundred bytes can ask for gigabytes: a compiled
character map with a length in it, a long pattern, long added tokens, the trie of a unigram model. A file in the form
that conversion writes, with a BPE model behind parts that hold nothing of that, is loaded as it is; this takes a few
milliseconds to see. Any other file is tried in a process of its own first, which takes a tenth of a second.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitnet_onnx.errors import PackageError
from bitnet_onnx.json_input import check_structure, outside_strings
from bitnet_onnx.limited_process import Limits, ProcessEndedError, run_limited
from bitnet_onnx.runtime._json import decode_utf8
from bitnet_onnx.runtime._native_errors import one_line
from bitnet_onnx.runtime._tokenizer_trial import without_repeats

_TRIAL = Path(__file__).with_name("_tokenizer_trial.py")
_LIMITS = Limits(megabytes=1000, seconds=8)
_MODEL = b',"model":{"type":"BPE",'
#: Of what stands before the model: Gemma's 6000 added tokens take 1.2 MB.
_MAX_PARTS = 4 << 20
#: Of all patterns: those of today have 400 characters.
_MAX_PATTERNS = 8192
#: Of all added tokens: the library takes 155 bytes for each of their bytes. Those of Gemma have 60 thousand.
_MAX_ADDED = 1 << 20
#: How many times its length a text may get by replacements; those of today leave it as long as it is.
_MAX_GROWTH = 64
#: An escape of anything but a control character, which could spell a name.
_ESCAPED = re.compile(rb"\\u(?!00[01])")

_SPACE = 2
_KINDS = np.zeros(256, np.int8)
_KINDS[list(b"[{")] = 1
_KINDS[list(b"]}")] = -1
_KINDS[list(b" \t\r\n")] = _SPACE


def check_tokenizer_file(data: bytes, source: Path | str) -> None:
    """Refuse what must not be loaded here.

    Raises:
        PackageError: it is no bounded JSON, does not load within the limits of time and memory, or makes texts longer
            without bound; the message begins with `source`.
    """
    outside = outside_strings(data)
    check_structure(outside, str(source), PackageError)
    parts = plain_parts(data, outside)
    if parts is None:
        parts = _tried(data, source)
    growth = 1
    for part in _objects([parts.get("normalizer"), parts.get("decoder")]):
        content, pattern = part.get("content"), part.get("pattern")
        if isinstance(content, str):
            # A pattern may also match between the characters.
            growth *= max(1, len(content) + (isinstance(pattern, dict) and "Regex" in pattern))
        if growth > _MAX_GROWTH:
            raise PackageError(
                f"{source}: its replacements make a text over {_MAX_GROWTH} times as long; convert the checkpoint again"
            )


def plain_parts(data: bytes, outside: npt.NDArray[np.uint8]) -> dict[str, Any] | None:
    """What stands before the BPE model of a file whose load is known to be bounded; None where it is not.

    Args:
        data: the file.
        outside: its `outside_strings`.
    """
    at = data.find(_MODEL)
    if not 0 < at <= _MAX_PARTS:
        return None
    head, tail = data[:at], data[at:]
    try:
        parts = json.loads(head + b"}", object_pairs_hook=without_repeats)
    except (ValueError, RecursionError):
        return None
    # One type, named so that it can be seen; the head ends outside of strings, or it would not have been parsed.
    escapes = tail.replace(rb"\\", b"")
    if (
        "model" in parts
        or tail.count(b'"type":"') != 1
        or _ESCAPED.search(escapes)
        or not _is_last(outside[outside_strings(head).size :])
    ):
        return None
    patterns = added = 0
    for part in _objects(parts):
        if "precompiled_charsmap" in part:
            return None
        patterns += sum(len(text) for text in (part.get("Regex"), part.get("pattern")) if isinstance(text, str))
        added += len(part["content"].encode("utf-8", "surrogatepass")) if isinstance(part.get("content"), str) else 0
    return None if patterns > _MAX_PATTERNS or added > _MAX_ADDED else parts


def _is_last(outside: npt.NDArray[np.uint8]) -> bool:
    """Whether the first object is the last one in the file's, and no white space is between."""
    kinds = _KINDS[outside]
    steps = kinds[kinds != 0]
    if (steps == _SPACE).any():
        return False
    depth = np.cumsum(steps, dtype=np.int32)
    # Open again before the last but one bracket, the model would be followed by other parts.
    return bool(depth.size >= 2 and depth[-1] == -1 and depth[-2] == 0 and (depth[:-2] > 0).all())


def _tried(data: bytes, source: Path | str) -> dict[str, Any]:
    try:
        answer = run_limited(_TRIAL, data, _LIMITS)
    except ProcessEndedError:
        raise PackageError(
            f"{source}: not a usable tokenizer: loading it takes over {_LIMITS.seconds} s or {_LIMITS.megabytes} MB, "
            f"or ends the process"
        ) from None
    if "error" in answer:
        decode_utf8(data, Path(source))
        raise PackageError(f"{source}: not a usable tokenizer: {one_line(ValueError(answer['error']))}")
    parts: dict[str, Any] = answer["parts"]
    return parts


def _objects(value: object) -> Iterator[Mapping[str, Any]]:
    """All objects in a JSON value."""
    pending = [value]
    while pending:
        found = pending.pop()
        if isinstance(found, dict):
            yield found
            pending += found.values()
        elif isinstance(found, list):
            pending += found
