"""tokenizer.json files of few bytes that cost much."""

from __future__ import annotations

import base64
import json


def with_part(**parts: object) -> bytes:
    return json.dumps({"model": {"type": "BPE", "vocab": {"t0": 0}, "merges": []}, **parts}).encode()


def split(pattern: str) -> bytes:
    rule = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return with_part(pre_tokenizer=rule)


def charsmap(data: bytes) -> bytes:
    return with_part(normalizer={"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()})


#: What made the library take gigabytes or minutes, abort the process, or write a stack trace.
BOMBS = {
    "character map of 4 GB": charsmap(b"\xff" * 4),
    "character map that panics": charsmap(b""),
    "long pattern": split(r"[^\p{L}]" * 1_000_000),
    "long added tokens": with_part(
        added_tokens=[
            {"id": index, "content": f"{index}" + "\u00e9" * 9000, "normalized": True, "special": True}
            | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
            for index in range(600)
        ]
    ),
    "long piece": json.dumps(
        {"model": {"type": "Unigram", "vocab": [["a" * 30_000_000, 0.0]], "unk_id": 0}}, separators=(",", ":")
    ).encode(),
    "merges": b'{"model":{"type":"BPE","vocab":{"a":0},"merges":[' + b",".join([b'["a","a"]'] * 3_000_000) + b"]}}",
}
