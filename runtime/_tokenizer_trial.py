"""Loads a package's tokenizer.json in a limited process; started by `_tokenizer_file.py`.

This file imports nothing of bitnet_onnx, so that the process starts quickly.
"""

from __future__ import annotations

import json

from tokenizers import Tokenizer

#: The parts that a rule looks at; the others are large.
PARTS = ("normalizer", "decoder")


def without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object, if no key comes twice: the library would read both, and a rule see one."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice in one object")
    return found


def answer(data: bytes) -> dict[str, object]:
    """Some `parts` of a file that loads, or `error`."""
    try:
        Tokenizer.from_buffer(data)
        document = json.loads(data, object_pairs_hook=without_repeats)
        return {"parts": {name: document.get(name) for name in PARTS}}
    except BaseException as error:  # a panic of the library's Rust code is no Exception
        return {"error": str(error)}
