"""Tries a grammar in a process of its own; started by `constraints.py`, reads and writes one JSON object.

A grammar comes from whoever asks. llguidance has limits of its own, but a few constructions take minutes, gigabytes
or the stack before any of them is looked at; only the operating system can end those reliably.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
from collections.abc import Sequence
from typing import Any

import llguidance
import numpy as np

_STEPS = 48
_WALKS = 2


class _Bytes:
    """Every byte a token: a walk over them meets what a walk over any vocabulary meets."""

    eos_token_id = 256
    bos_token_id = None
    tokens: Sequence[bytes] = (*(bytes([byte]) for byte in range(256)), b"\xff<end>")
    special_token_ids = (256,)

    def __call__(self, text: str) -> list[int]:
        return list(text.encode())


def try_grammar(request: dict[str, Any], limits: llguidance.LLParserLimits) -> dict[str, str]:
    """Compiles `grammar` and walks into it.

    Returns:
        `{}`, or `{"error": message}`.
    """
    tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Bytes()))
    for seed in range(_WALKS):
        choose = random.Random(seed)  # noqa: S311
        matcher = llguidance.LLMatcher(tokenizer, request["grammar"], log_level=0, limits=limits)
        for _ in range(_STEPS):
            if matcher.is_error() or matcher.is_stopped():
                break
            mask = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
            bytes_allowed = np.flatnonzero(mask[:256])
            if not bytes_allowed.size:
                break
            matcher.consume_token(int(choose.choice(list(bytes_allowed))))
        if matcher.is_error():
            return {"error": matcher.get_error()}
    return {}


def _limit_process(megabytes: int, seconds: int) -> None:
    try:
        import resource
    except ImportError:  # Windows: the parent's time limit remains
        return
    for kind, limit in ((resource.RLIMIT_AS, megabytes << 20), (resource.RLIMIT_CPU, seconds)):
        # macOS refuses a limit below the address space already reserved.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (limit, limit))


def main() -> None:
    """Reads the request from standard input and writes the answer to standard output."""
    request = json.load(sys.stdin.buffer)
    _limit_process(request["max_megabytes"], request["max_seconds"])
    limits = llguidance.LLParserLimits(**request["limits"])
    sys.stdout.buffer.write(json.dumps(try_grammar(request, limits)).encode())


if __name__ == "__main__":
    main()
