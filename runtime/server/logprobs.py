"""Logarithms of probabilities in the two forms of OpenAI's endpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bitnet_onnx.runtime.engine.request import TokenEvent

#: JSON has no infinity; OpenAI's own servers send this for what cannot be.
_LEAST = -9999.0

TokenText = Callable[[int], str]


def _finite(value: float) -> float:
    return max(value, _LEAST)


def _token(token: int, logprob: float, text_of: TokenText) -> dict[str, object]:
    text = text_of(token)
    # A token that ends within a character has no text, and the decoder does not tell its bytes.
    whole = "\ufffd" not in text
    return {"token": text, "logprob": _finite(logprob), "bytes": list(text.encode()) if whole else None}


def chat_logprobs(tokens: Iterable[TokenEvent], text_of: TokenText) -> dict[str, object]:
    """`logprobs` of a chat choice, or of one chunk of it."""
    content = []
    for token in tokens:
        if token.logprobs is None:
            continue
        entry = _token(token.id, token.logprobs.chosen, text_of)
        entry["top_logprobs"] = [_token(other, logprob, text_of) for other, logprob in token.logprobs.top]
        content.append(entry)
    return {"content": content, "refusal": None}


class CompletionLogprobs:
    """`logprobs` of a completion; for one choice, which may be told in several parts."""

    def __init__(self, text_of: TokenText) -> None:
        self._text_of = text_of
        self._offset = 0

    def part(self, tokens: Iterable[TokenEvent]) -> dict[str, object]:
        """Of the next tokens."""
        texts, logprobs, tops, offsets = [], [], [], []
        for token in tokens:
            if token.logprobs is None:
                continue
            texts.append(self._text_of(token.id))
            logprobs.append(_finite(token.logprobs.chosen))
            top: dict[str, float] = {}
            for other, logprob in token.logprobs.top:
                top.setdefault(self._text_of(other), _finite(logprob))  # the likeliest of tokens with equal text
            tops.append(top)
            offsets.append(self._offset)
            self._offset += len(token.text)
        return {"tokens": texts, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}
