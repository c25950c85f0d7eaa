"""One generation: the loop from prompt to tokens and text, and what it yields."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from bitnet_onnx.runtime._prompt_lookup import PromptLookup
from bitnet_onnx.runtime._speculation import choose_drafts, least_chance
from bitnet_onnx.runtime.kv_cache import KVCache
from bitnet_onnx.runtime.sampling import Sampler, SamplingParameters
from bitnet_onnx.runtime.session import DecoderSession
from bitnet_onnx.runtime.streaming import Detokenizer, StopStrings

#: Why generation ended: an end token or stop string, `max_new_tokens`, a full context, or the caller.
FinishReason: TypeAlias = Literal["stop", "length", "context", "cancelled"]


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds and tokens of one generation; `prefill_tokens` counts what was computed, not what was cached."""

    load_s: float
    prefill_s: float
    prefill_tokens: int
    decode_s: float
    decode_tokens: int

    @property
    def prefill_tokens_per_s(self) -> float:
        """Speed of reading the prompt; 0 before it was read."""
        return self.prefill_tokens / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """Speed of generation after the first token; 0 when there was only one."""
        return self.decode_tokens / self.decode_s if self.decode_s else 0.0

    def as_dict(self) -> dict[str, float]:
        """All figures, for JSON."""
        return {
            "load_s": self.load_s,
            "prefill_s": self.prefill_s,
            "prefill_tokens": self.prefill_tokens,
            "prefill_tokens_per_s": self.prefill_tokens_per_s,
            "decode_s": self.decode_s,
            "decode_tokens": self.decode_tokens,
            "decode_tokens_per_s": self.decode_tokens_per_s,
        }


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token and the text that became certain with it (often empty)."""

    id: int
    text: str


@dataclass(frozen=True, slots=True)
class Generation:
    """What was generated.

    `ids` holds every chosen token, the end token included; `text` neither that nor a stop string.
    """

    ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    timings: Timings


@dataclass(slots=True)
class CachedSequence:
    """A cache and the ids read into it; after an interruption one may be ahead of the other."""

    cache: KVCache
    ids: list[int] = field(default_factory=list)

    def keep_prefix_of(self, ids: Sequence[int]) -> None:
        """Forgets all but the common beginning with `ids`; at least the last id is left to read."""
        known = min(len(self.ids), self.cache.length, len(ids) - 1)
        common = next((index for index in range(known) if self.ids[index] != ids[index]), known)
        self.cache.truncate(common)
        del self.ids[common:]


class TokenStream(Iterator[Token]):
    """Tokens as they are generated; the prompt is read when the first is asked for.

    With `speculate` up to so many tokens are guessed from the text and read together with the last one. They are chosen
    all the same, so where logits do not depend on how tokens are cut into calls, the answer does not change.

    Attributes:
        sequence: the cache in use, free for another stream once `ended` is true.
        ended: whether the stream came to its end, failed, was interrupted or closed.
    """

    def __init__(
        self,
        session: DecoderSession,
        sequence: CachedSequence,
        detokenizer: Detokenizer,
        prompt: Sequence[int],
        parameters: SamplingParameters,
        *,
        stop_ids: frozenset[int],
        context_length: int,
        load_s: float,
        speculate: int = 0,
    ) -> None:
        self.sequence = sequence
        self.ended = False
        self._session = session
        self._detokenizer = detokenizer
        self._prompt = prompt
        self._parameters = parameters
        self._stop_ids = stop_ids
        self._context_length = context_length
        self._stop_strings = StopStrings(parameters.stop)
        self._ids: list[int] = []
        self._pieces: list[str] = []
        self._finish_reason: FinishReason | None = None
        self._load_s = load_s
        self._speculate = speculate
        self._prefill_s = 0.0
        self._prefill_tokens = 0
        self._decode_s = 0.0
        self._events = self._run()

    def __next__(self) -> Token:
        try:
            return next(self._events)
        except BaseException:
            self.ended = True
            raise

    def close(self) -> None:
        """Ends the generation early."""
        self._events.close()
        self.ended = True

    def result(self) -> Generation:
        """What there is so far; `finish_reason` is "cancelled" when generation has not come to its end."""
        timings = Timings(
            load_s=self._load_s,
            prefill_s=self._prefill_s,
            prefill_tokens=self._prefill_tokens,
            decode_s=self._decode_s,
            decode_tokens=max(len(self._ids) - 1, 0),
        )
        return Generation(tuple(self._ids), "".join(self._pieces), self._finish_reason or "cancelled", timings)

    def _run(self) -> Generator[Token, None, None]:
        sampler = Sampler(self._parameters)
        sampler.observe(self._prompt)
        started = time.perf_counter()
        self.sequence.keep_prefix_of(self._prompt)
        unread = self._prompt[len(self.sequence.ids) :]
        rows = self._session.step(unread, self.sequence.cache)[np.newaxis]
        self.sequence.ids += unread
        self._prefill_s = time.perf_counter() - started
        self._prefill_tokens = len(unread)
        text = [*self._prompt]
        lookup = PromptLookup(text, len(text)) if self._speculate else None
        draft: tuple[int, ...] = ()
        while True:
            for row, guess in zip(rows, (*draft, None), strict=True):
                token = sampler.sample(row)
                sampler.observe((token,))
                text.append(token)
                yield self._accept(token)
                if self._finish_reason is not None:
                    return
                if token != guess:
                    break
                self.sequence.ids.append(token)
            started = time.perf_counter()
            self.sequence.cache.truncate(len(self.sequence.ids))
            draft = () if lookup is None else self._draft(lookup)
            cache = self.sequence.cache
            if draft:
                rows = self._session.forward((token, *draft), cache)
            else:
                rows = self._session.step((token,), cache)[np.newaxis]
            self.sequence.ids.append(token)
            self._decode_s += time.perf_counter() - started

    def _draft(self, lookup: PromptLookup) -> tuple[int, ...]:
        """Guesses what follows the last token; the end is never read, and no guess makes the cache grow."""
        lookup.follow()
        read, cache = len(self.sequence.ids) + 1, self.sequence.cache
        room = min(self._parameters.max_new_tokens - len(self._ids) - 1, cache.capacity - read, self._speculate)
        return choose_drafts([lookup.draft(room, least_chance(1))])[0]

    def _accept(self, token: int) -> Token:
        """Records a token, its text, and whether it is the last one."""
        self._ids.append(token)
        text = "" if token in self._stop_ids else self._stop_strings.push(self._detokenizer.push(token))
        if token in self._stop_ids or self._stop_strings.found is not None:
            self._finish_reason = "stop"
        elif len(self._ids) >= self._parameters.max_new_tokens:
            self._finish_reason = "length"
        elif len(self.sequence.ids) >= self._context_length:
            self._finish_reason = "context"
        if self._finish_reason is not None:
            text += self._stop_strings.flush()
        self._pieces.append(text)
        return Token(token, text)
