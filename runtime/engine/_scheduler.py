"""Which request is admitted, read and stepped next, and who yields when memory is short."""

from __future__ import annotations

import logging
from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from bitnet_onnx.errors import BitnetOnnxError
from bitnet_onnx.runtime._speculation import MOST_ROWS, choose_drafts, least_chance
from bitnet_onnx.runtime.engine._interfaces import BatchSessionLike, SequenceLike
from bitnet_onnx.runtime.engine._prompt_cache import PromptCache
from bitnet_onnx.runtime.engine._run import Run
from bitnet_onnx.runtime.engine.metrics import Counters
from bitnet_onnx.runtime.engine.request import EndReason, EngineBusyError

logger = logging.getLogger(__name__)

#: Copying is far cheaper than computing; beyond as many chunks it would still hold up the running answers.
_COPIED_CHUNKS = 16
_RETRY_AFTER_S = 5.0
#: A call for a short prompt takes as long as so many tokens of a long one.
_CALL_TOKENS = 16
_Ids: TypeAlias = tuple[int, ...]
_Logits: TypeAlias = npt.NDArray[np.float32]


class Scheduler:
    """Steps all requests; for one thread. Nothing that one request does keeps the others from being answered.

    When memory is short: the prompt cache yields, block by block; then nobody is admitted until somebody has ended;
    then the last in order gives up its keys and values, waits, and is read again later; and a request that does not fit
    even alone is refused.

    Attributes:
        waiting: requests without a slot, the next one first.
        resident: requests with a slot, in the order of admission.
    """

    def __init__(
        self,
        session: BatchSessionLike,
        cache: PromptCache,
        counters: Counters,
        max_batch: int,
        clock: Callable[[], float],
        *,
        draft_tokens: int = 0,
    ) -> None:
        self.waiting: list[Run] = []
        self.resident: list[Run] = []
        self._session = session
        self._cache = cache
        self._counters = counters
        self._max_batch = min(max_batch, session.max_batch)
        self._clock = clock
        self._draft_tokens = draft_tokens
        self._readers: deque[Run] = deque()
        self._pressed = False

    @property
    def reading(self) -> int:
        """Requests whose prompt is being read."""
        return len(self._readers)

    def add(self, runs: Iterable[Run]) -> None:
        """Takes new requests."""
        for run in runs:
            insort(self.waiting, run, key=_order)

    def step(self) -> bool:
        """Ends what is to be ended, admits, reads a chunk's worth of prompts, and generates one token of every answer.

        Returns:
            Whether anything is left to do.
        """
        self._expire()
        self._admit()
        self._read_prompts()
        self._decode()
        return bool(self.waiting or self.resident)

    def end_all(self, reason: EndReason, error: BitnetOnnxError | None = None) -> None:
        """Ends every request."""
        for run in [*self.resident, *self.waiting]:
            self._end(run, reason, error)

    def _expire(self) -> None:
        now = self._clock()
        for run in [*self.resident, *self.waiting]:
            if run.cancelled:
                self._end(run, "cancelled")
            elif run.deadline is not None and now >= run.deadline:
                self._end(run, "deadline")

    def _admit(self) -> None:
        while self.waiting and len(self.resident) < self._max_batch and not self._pressed:
            run = self.waiting[0]
            try:
                sequence = self._open(min(len(run.tokens) + 1, self._session.context_length))
            except Exception as error:
                self._fail(run, error)
                continue
            if sequence is not None:
                del self.waiting[0]
                run.sequence = sequence
                run.reading = True
                run.cached_tokens = run.cached_tokens if run.generated else 0
                self.resident.append(run)
                self._readers.append(run)
                self._count_admission(run)
            elif self.resident:
                self._pressed = True
            else:
                self._refuse(run)

    def _count_admission(self, run: Run) -> None:
        if run.generated == 0:  # those that yielded their memory meanwhile are looked up again too
            self._counters.prompt_tokens += len(run.tokens)
        if not run.admitted:
            run.admitted = True
            self._counters.queued.add(self._clock() - run.submitted_at)

    def _open(self, length: int) -> SequenceLike | None:
        """A sequence, at the cost of the cache and of what sequences that have ended left."""
        trimmed = False
        while True:
            sequence: SequenceLike | None = self._session.open(length)
            if sequence is not None or trimmed:
                return sequence
            if not self._cache.evict():
                self._session.trim()
                trimmed = True

    def _read_prompts(self) -> None:
        """Reads a chunk's worth of tokens: of one long prompt, or of several short ones, in turn."""
        room = self._session.prefill_chunk
        for _ in range(len(self._readers)):
            unread = len(self._readers[0].tokens) - _held(self._readers[0]).length
            if room < self._session.prefill_chunk and max(unread, _CALL_TOKENS) > room:
                return
            before = self._counters.prefilled_tokens
            self._read(self._readers.popleft())
            read = self._counters.prefilled_tokens - before
            if not read:  # what the cache held was copied, as much as a step may
                return
            room -= max(read, _CALL_TOKENS)

    def _read(self, run: Run) -> None:
        """Reads the next chunk of a prompt; its last one gives the next token."""
        try:
            if not self._restore(run):
                self._readers.append(run)
                return
            logits = self._prefill(run)
            self._remember(run, _held(run).length)
        except Exception as error:
            self._fail(run, error)
            return
        if logits is None:
            self._readers.append(run)
        else:
            run.reading = False
            self._advance(run, logits)

    def _prefill(self, run: Run) -> _Logits | None:
        sequence = _held(run)
        start, total = sequence.length, len(run.tokens)
        stop = min(start + self._session.prefill_chunk, total)
        if stop < total:
            # At the border of a block the cache may help again.
            border = stop - stop % self._cache.block_tokens
            stop = border if border > start else stop
        logits = self._session.prefill(sequence, run.tokens[start:stop], logits=stop == total)
        self._counters.prefilled_tokens += stop - start
        return logits

    def _restore(self, run: Run) -> bool:
        """Copies what the cache holds of the unread tokens, but for the last, which must be computed.

        Returns:
            False when as much was copied as one step may.
        """
        sequence, size = _held(run), self._cache.block_tokens
        start = sequence.length
        if start % size:
            return True
        keys = run.keys.of(run.tokens, (len(run.tokens) - 1) // size)
        first = start // size
        most = max(self._session.prefill_chunk * _COPIED_CHUNKS // size, 1)
        found = self._cache.find(keys[: first + most], first)
        for block in found:
            self._session.copy_in(sequence, block)
        run.remembered = first + len(found)
        if run.generated == 0:
            run.cached_tokens += len(found) * size
            self._counters.cached_tokens += len(found) * size
        return len(found) < most

    def _remember(self, run: Run, length: int) -> None:
        """Offers the blocks that became complete to the cache, but for times when it would have to yield them again.

        Args:
            run: the request.
            length: tokens that it has read and that are not guessed.
        """
        if self._pressed:
            return
        sequence, size = _held(run), self._cache.block_tokens
        complete = length // size
        for index in range(run.remembered, complete):
            keys = run.keys.of(run.tokens, index + 1)
            copy = partial(self._session.copy_out, sequence, index * size, (index + 1) * size)
            self._cache.store(keys, copy)
        run.remembered = max(run.remembered, complete)

    def _decode(self) -> None:
        ready = sorted((run for run in self.resident if not run.reading), key=_order)
        # Whoever yields is behind all that have got room before.
        rows = [run for run in ready if run.sequence is not None and self._make_room(run)]
        if not rows:
            return
        try:
            found = self._compute(rows)
        except Exception as error:
            for run in rows:
                self._fail(run, error)
            return
        self._counters.decode_steps += 1
        self._counters.decode_rows += len(rows)
        for run, (draft, logits) in zip(rows, found, strict=True):
            self._accept(run, draft, logits)

    def _compute(self, rows: list[Run]) -> list[tuple[_Ids, _Logits]]:
        """For each row the draft that was read behind its last token, and the logits behind that and each of these."""
        sequences, ids = [run.sequence for run in rows], [run.tokens[-1] for run in rows]
        # While memory is short, whatever is free is for those that wait.
        if self._draft_tokens and len(rows) <= MOST_ROWS and not self._pressed:
            try:
                least = least_chance(len(rows))
                drafts = choose_drafts([run.draft(self._draft_tokens, least) for run in rows])
                if any(drafts):
                    found = self._session.verify(sequences, ids, drafts)
                    self._counters.drafted_tokens += sum(len(logits) - 1 for logits in found)
                    return [(draft[: len(logits) - 1], logits) for draft, logits in zip(drafts, found, strict=True)]
            except Exception as error:
                logger.warning("no more tokens are guessed, since that failed: %s", error)
                self._draft_tokens = 0
        return [((), row[np.newaxis]) for row in self._session.decode(sequences, ids)]

    def _accept(self, run: Run, draft: _Ids, logits: _Logits) -> None:
        """Chooses tokens one by one, until one is another than was guessed."""
        length = len(run.tokens)  # what is read for certain
        for row, guess in zip(logits, (*draft, None), strict=True):
            try:
                self._remember(run, length)
            except Exception as error:
                self._fail(run, error)
                return
            self._advance(run, row)
            right = guess is not None and run.tokens[length:] == [guess]
            self._counters.accepted_tokens += right
            if not right or run.sequence is None or run.cancelled:
                break
            length += 1
        if draft and run.sequence is not None:
            try:
                self._session.truncate(run.sequence, length)
            except Exception as error:
                self._fail(run, error)

    def _make_room(self, run: Run) -> bool:
        """Room for one more token, at the cost of the cache and of those behind; False when it yielded itself."""
        trimmed = False
        while True:
            sequence = _held(run)
            try:
                if self._session.reserve(sequence, sequence.length + 1):
                    return True
                if self._cache.evict():
                    continue
                if not trimmed:
                    trimmed = True
                    self._session.trim()
                    continue
            except Exception as error:
                self._fail(run, error)
                return False
            if len(self.resident) == 1:
                self._refuse(run)
                return False
            last = max(self.resident, key=_order)
            self._preempt(last)
            self._pressed = True
            trimmed = False
            if last is run:
                return False

    def _preempt(self, run: Run) -> None:
        logger.info("memory is short: a request of %d tokens waits and is read again later", len(run.tokens))
        self._release(run)
        self._counters.preemptions += 1
        insort(self.waiting, run, key=_order)

    def _advance(self, run: Run, logits: _Logits) -> None:
        first = run.generated == 0
        try:
            event, reason = run.choose(logits)
        except Exception as error:
            self._fail(run, error)
            return
        self._counters.generated_tokens += 1
        now = self._clock()
        if first:
            self._counters.first_token.add(now - run.submitted_at)
        else:
            self._counters.token_gap.add(now - run.token_at)
        run.token_at = now
        run.stream.put(event)
        if reason is not None:
            self._end(run, reason)

    def _refuse(self, run: Run) -> None:
        self._fail(
            run,
            EngineBusyError(f"no memory for a sequence of {len(run.tokens) + 1} tokens: come later", _RETRY_AFTER_S),
        )

    def _fail(self, run: Run, error: Exception) -> None:
        if not isinstance(error, BitnetOnnxError):
            logger.error("a request failed", exc_info=error)
            error = BitnetOnnxError(f"the request failed: {type(error).__name__}: {' '.join(str(error).split()):.200}")
        self._end(run, "error", error)

    def _end(self, run: Run, reason: EndReason, error: BitnetOnnxError | None = None) -> None:
        self._release(run)
        if run in self.waiting:
            self.waiting.remove(run)
        self._counters.finished[reason] += 1
        run.stream.put(run.finished(reason, error))

    def _release(self, run: Run) -> None:
        """Gives the slot back, if it has one."""
        if run.sequence is None:
            return
        sequence, run.sequence = run.sequence, None
        self.resident.remove(run)
        if run in self._readers:
            self._readers.remove(run)
        self._pressed = False
        try:
            self._session.close(sequence)
        except Exception:
            logger.exception("a sequence could not be closed")


def _order(run: Run) -> tuple[int, int]:
    return run.order


def _held(run: Run) -> SequenceLike:
    if run.sequence is None:
        raise BitnetOnnxError("the request has no sequence")
    return run.sequence
