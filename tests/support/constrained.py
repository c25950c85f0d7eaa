"""Answers drawn at random under a constraint, as a model that knows nothing would give them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from bitnet_onnx.runtime.engine.request import Constraint


def sentencepiece_tokenizer() -> Tokenizer:
    """Llama 2's kind: a sign for the space, one token for each byte, a few words."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [
        *("\u2581", "y", "e", "s", "ye", "yes", "\u2581yes", "\u2581{", "{", "no", '{"', '"', "a", "1", "\u00e9", "}"),
        "<0xZZ>",
    ]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(pieces)},
            merges=[("y", "e"), ("ye", "s"), ("\u2581", "yes"), ("\u2581", "{"), ("{", '"')],
            byte_fallback=True,
            unk_token="<unk>",
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in pieces[:3]])
    return tokenizer


def sample(
    constraint: Constraint,
    decode: Callable[[Sequence[int]], str],
    closing: Sequence[int],
    stop: Sequence[int],
    *,
    seed: int = 0,
    most: int = 3000,
) -> str:
    """A whole answer.

    Args:
        constraint: fresh.
        decode: ids to text.
        closing: tokens that bring an answer nearer to its end; three times in ten one of them is taken if it may be.
        stop: the end tokens.
        seed: of the choice.
        most: tokens after which it is a fault that the answer has not ended.
    """
    choose = random.Random(seed)
    nearer = np.array(closing, np.int64)
    ends = np.array(stop, np.int64)
    ids: list[int] = []
    while len(ids) < most:
        mask = constraint.allowed()
        allowed = np.flatnonzero(mask)
        going_on = allowed[~np.isin(allowed, ends)]
        if mask[ends].all() != mask[ends].any():
            raise AssertionError("some end tokens are allowed, others are not")
        if mask[ends].any() and (choose.random() < 0.5 or not going_on.size):
            constraint.accept(int(choose.choice(list(ends))))
            if not constraint.complete:
                raise AssertionError("the end was accepted, and the answer is not complete")
            return decode(ids)
        preferred = nearer[mask[nearer]]
        pool = preferred if preferred.size and choose.random() < 0.3 else going_on
        token = int(choose.choice(list(pool)))
        constraint.accept(token)
        ids.append(token)
    raise AssertionError(f"no end after {most} tokens: {decode(ids)[:300]!r}")
