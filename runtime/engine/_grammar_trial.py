"""Tries a grammar in a limited process; started by `constraints.py`, asked in JSON.

A grammar comes from whoever asks. llguidance has limits of its own, but a few constructions take minutes, gigabytes
or the stack before any of them is looked at; only the operating system can end those reliably.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import llguidance
import numpy as np

from bitnet_onnx._limited_main import peak_megabytes

_STEPS = 48
_WALKS = 2


class _Bytes:
    """Every byte a token: a walk over them meets what a walk over any vocabulary meets.

    Before them stand the ids and control tokens of the model, which a grammar may name.
    """

    bos_token_id = None

    def __init__(self, vocab_size: int, control: dict[str, int]) -> None:
        names = [b"\xff[%d]" % token for token in range(vocab_size)]
        for name, token in control.items():
            names[token] = b"\xff" + name.encode("utf-8", "replace")
        self.first = vocab_size
        self.eos_token_id = vocab_size + 256
        self.tokens: Sequence[bytes] = (*names, *(bytes([byte]) for byte in range(256)), b"\xff[end]")
        self.special_token_ids = (*range(vocab_size), self.eos_token_id)

    def __call__(self, text: str) -> list[int]:
        return [self.first + byte for byte in text.encode()]


def try_grammar(request: dict[str, Any], limits: llguidance.LLParserLimits) -> dict[str, object]:
    """Compiles `grammar` and walks into it.

    Args:
        request: `grammar`, `vocab_size` and `control`: text and id of the control tokens.
        limits: of each step.

    Returns:
        `{"megabytes": what it took}`, or `{"error": message}`.
    """
    vocabulary = _Bytes(request["vocab_size"], request["control"])
    tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(vocabulary))
    before = peak_megabytes()
    for seed in range(_WALKS):
        choose = random.Random(seed)  # noqa: S311
        matcher = llguidance.LLMatcher(tokenizer, request["grammar"], log_level=0, limits=limits)
        for _ in range(_STEPS):
            if matcher.is_error() or matcher.is_stopped():
                break
            mask = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
            allowed = np.flatnonzero(mask[: vocabulary.eos_token_id])
            if not allowed.size:
                break
            # Bytes stand last: of many tokens the last ones are text.
            matcher.consume_token(int(choose.choice(list(allowed[-256:]))))
        if matcher.is_error():
            return {"error": matcher.get_error()}
    return {"megabytes": peak_megabytes() - before}


def answer(request: bytes) -> dict[str, object]:
    """`try_grammar` of JSON that also holds the `limits`."""
    asked = json.loads(request)
    return try_grammar(asked, llguidance.LLParserLimits(**asked["limits"]))
