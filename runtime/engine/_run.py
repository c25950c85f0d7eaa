"""One request on its way through the engine: its tokens, and how the next one is chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from bitnet_onnx.errors import BitnetOnnxError
from bitnet_onnx.runtime._prompt_lookup import Draft, PromptLookup
from bitnet_onnx.runtime.engine._interfaces import SequenceLike
from bitnet_onnx.runtime.engine._prompt_cache import BlockKeys
from bitnet_onnx.runtime.engine.request import Constraint, EndReason, EngineRequest, Finished, TokenEvent, TokenLogprobs
from bitnet_onnx.runtime.engine.stream import AnswerStream
from bitnet_onnx.runtime.sampling import Sampler
from bitnet_onnx.runtime.streaming import Detokenizer, StopStrings


class Run:
    """The state of one request; only the engine's thread changes it, but for `cancelled`.

    Attributes:
        order: what is first has the smaller one: priority, then arrival.
        tokens: of the prompt and the answer; those from `sequence.length` on are not read yet.
        sequence: where keys and values are held; None while it waits.
        reading: its tokens are being read, before the next is chosen.
        keys: names of its blocks in the prompt cache.
        remembered: blocks that were offered to the prompt cache or came from it.
        cached_tokens: of the prompt, what the prompt cache held when it was read first.
        cancelled: its consumer has left.
        admitted: it has had a slot.
        token_at: when its last token was generated.
    """

    def __init__(
        self,
        request: EngineRequest,
        arrival: int,
        now: float,
        decode: Callable[[Sequence[int]], str],
        stop_ids: frozenset[int],
        context_length: int,
        keys: BlockKeys,
    ) -> None:
        self.request = request
        self.order = (-request.priority, arrival)
        self.submitted_at = now
        self.deadline = None if request.deadline_s is None else now + request.deadline_s
        self.stream = AnswerStream(self.cancel)
        self.tokens = list(request.prompt)
        self.sequence: SequenceLike | None = None
        self.reading = True
        self.keys = keys
        self.remembered = 0
        self.cached_tokens = 0
        self.cancelled = False
        self.admitted = False
        self.token_at = now
        self._lookup: PromptLookup | None = None
        self._stop_ids = stop_ids
        self._context_length = context_length
        self._sampler = Sampler(request.parameters)
        self._sampler.observe(request.prompt)
        # A continued text keeps the space before its next word; an answer is a text of its own.
        self._detokenizer = Detokenizer(decode, request.prompt if request.continues_text else ())
        self._stop_strings = StopStrings(request.parameters.stop)

    @property
    def generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - len(self.request.prompt)

    def draft(self, most: int, least: float) -> Draft:
        """Guesses the next tokens, at most `most`, as long as the chance that all are right is above `least`."""
        if self._lookup is None:
            self._lookup = PromptLookup(self.tokens, len(self.request.prompt))
        self._lookup.follow()
        # The last token of an answer is never read, and neither is one behind the context.
        room = min(
            self.request.parameters.max_new_tokens - self.generated - 1, self._context_length - len(self.tokens), most
        )
        return self._lookup.draft(room, least)

    def cancel(self) -> None:
        """Marks it; the engine ends it at the beginning of its next step."""
        self.cancelled = True

    def choose(self, logits: npt.NDArray[np.float32]) -> tuple[TokenEvent, EndReason | None]:
        """Appends the next token, by the logits `[vocab]` behind all others; and why it is the last, if it is.

        Raises:
            BitnetOnnxError: the logits are not usable, or the constraint failed.
        """
        constraint = self.request.constraint
        scores = logits if constraint is None else _masked(logits, constraint)
        token = self._sampler.sample(scores)
        self._sampler.observe((token,))
        if constraint is not None:
            constraint.accept(token)
        self.tokens.append(token)
        reason: EndReason | None = None
        text = "" if token in self._stop_ids else self._stop_strings.push(self._detokenizer.push(token))
        complete = constraint is not None and constraint.complete
        if token in self._stop_ids or self._stop_strings.found is not None or complete:
            reason = "stop"
        elif self.generated >= self.request.parameters.max_new_tokens:
            reason = "length"
        elif len(self.tokens) > self._context_length:
            reason = "context"
        if reason is not None:
            text += self._stop_strings.flush()
        top = self.request.top_logprobs
        return TokenEvent(token, text, None if top is None else logprobs(logits, token, top)), reason

    def finished(self, reason: EndReason, error: BitnetOnnxError | None = None) -> Finished:
        """The last event."""
        self._lookup = None
        return Finished(
            reason=reason,
            prompt_tokens=len(self.request.prompt),
            cached_tokens=self.cached_tokens,
            completion_tokens=self.generated,
            error=error,
        )


def _masked(logits: npt.NDArray[np.float32], constraint: Constraint) -> npt.NDArray[np.float32]:
    allowed = constraint.allowed()
    if allowed.shape != logits.shape or allowed.dtype != np.bool_:
        raise BitnetOnnxError(
            f"the constraint speaks of {allowed.dtype} {list(allowed.shape)}, the vocabulary has {logits.size} tokens"
        )
    if not allowed.any():
        raise BitnetOnnxError("the constraint allows no token, not even the end")
    # What is not a number is no less wrong for not being allowed.
    return np.where(allowed | np.isnan(logits), logits, np.float32(-np.inf))


def logprobs(logits: npt.NDArray[np.float32], token: int, top: int) -> TokenLogprobs:
    """Logarithms of the softmax of logits `[vocab]`: of `token`, and of the `top` likeliest, the lowest id first among
    equals.
    """
    scores = logits.astype(np.float64)
    scores -= scores.max()
    scores -= np.log(np.exp(scores).sum())
    count = min(top, scores.size)
    likeliest: tuple[tuple[int, float], ...] = ()
    if count:
        border = np.partition(scores, scores.size - count)[scores.size - count]
        candidates = np.flatnonzero(scores >= border)
        best = candidates[np.argsort(-scores[candidates], kind="stable")[:count]]
        likeliest = tuple((int(id_), float(scores[id_])) for id_ in best)
    return TokenLogprobs(float(scores[token]), likeliest)
