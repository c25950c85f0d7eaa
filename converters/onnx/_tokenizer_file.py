"""tokenizer.json in the form that the `tokenizers` library parses in the least time and memory.

Merges are an untagged enum there: the library buffers all of them before it knows their form, and a list of two strings
takes more room than one string. It also fills its table of tokens faster in the order of their bytes than in the order
of their ids. Neither the form nor the order has a meaning.
"""

from __future__ import annotations

import json
from typing import TypeGuard

from bitnet_onnx.errors import InputError
from bitnet_onnx.json_input import load_object

_IDS = range(1 << 32)


def compact_tokenizer(data: bytes) -> bytes:
    """The same tokenizer without white space and escapes, its vocabulary sorted and its merges as strings.

    Args:
        data: a tokenizer.json of bounded size.

    Returns:
        An equivalent file; `data` itself where the model is not BPE or anything about it is unusual, so that
        whoever judges the file sees it as it was.
    """
    try:
        document = load_object(data, "tokenizer.json", max_bytes=len(data))
    except InputError:
        return data
    model = document.get("model")
    # Files of the library's first versions name no type.
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        return data
    vocabulary, merges = model.get("vocab"), model.get("merges")
    if not _is_vocabulary(vocabulary) or not isinstance(merges, list):
        return data
    if _are_pairs(merges):
        merges = _as_strings(merges)
    elif not all(isinstance(merge, str) for merge in merges):
        return data
    # Code points sort as their UTF-8 bytes do.
    model |= {"vocab": dict(sorted(vocabulary.items())), "merges": merges}
    try:
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # an escaped lone surrogate
        return data


def _is_vocabulary(value: object) -> TypeGuard[dict[str, int]]:
    # Of two tokens with one id the library keeps whichever comes last.
    return (
        isinstance(value, dict)
        and all(type(index) is int and index in _IDS for index in value.values())
        and len(set(value.values())) == len(value)
    )


def _are_pairs(merges: list[object]) -> TypeGuard[list[list[str]]]:
    return all(
        isinstance(merge, list) and len(merge) == 2 and all(isinstance(piece, str) for piece in merge)
        for merge in merges
    )


def _as_strings(merges: list[list[str]]) -> list[str] | list[list[str]]:
    # The library cuts a string at its spaces, and skips one that looks like the first line of a merges.txt.
    if any(" " in left or " " in right or left.startswith("#version") for left, right in merges):
        return merges
    return [f"{left} {right}" for left, right in merges]
