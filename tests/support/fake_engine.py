"""An engine that recites: for the server's tests, which are about HTTP and not about batches."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bitnet_onnx.errors import BitnetOnnxError
from bitnet_onnx.runtime.engine.metrics import Counters, EngineMetrics
from bitnet_onnx.runtime.engine.request import (
    EndReason,
    EngineBusyError,
    EngineRequest,
    Finished,
    TokenEvent,
    TokenLogprobs,
)
from bitnet_onnx.runtime.engine.stream import AnswerStream
from bitnet_onnx.runtime.memory import MemoryReport
from bitnet_onnx.runtime.streaming import Detokenizer, StopStrings


@dataclass
class _Run:
    request: EngineRequest
    detokenizer: Detokenizer
    stop: StopStrings
    stream: AnswerStream = field(init=False)
    given: int = 0
    cancelled: bool = False


class FakeEngine:
    """Answers every prompt with the same tokens, one for each running answer every `step_s` seconds.

    Attributes:
        requests: what was submitted.
        ended: why each ended answer ended.
        busy: refuse everything.
        error: answers end with it after their first token.
        going: cleared, nothing moves.
    """

    def __init__(
        self,
        script: Sequence[int],
        decode: Callable[[Sequence[int]], str],
        stop_ids: frozenset[int],
        step_s: float = 0.0,
        max_batch: int = 64,
    ) -> None:
        self.requests: list[EngineRequest] = []
        self.ended: list[EndReason] = []
        self.busy = False
        self.error: BitnetOnnxError | None = None
        self.going = threading.Event()
        self.going.set()
        self._script = list(script)
        self._decode = decode
        self._stop_ids = stop_ids
        self._step_s = step_s
        self._max_batch = max_batch
        self._runs: list[_Run] = []
        self._changed = threading.Condition()
        self._closing = False
        self._counters = Counters()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def healthy(self) -> bool:
        return self._thread.is_alive()

    def __enter__(self) -> FakeEngine:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Also how a test makes it die."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self.going.set()
        if self._thread.ident is not None:
            self._thread.join()

    def submit(self, request: EngineRequest) -> AnswerStream:
        if self.busy:
            raise EngineBusyError("the queue is full", retry_after_s=2.5)
        if not self.healthy:
            raise BitnetOnnxError("the engine has ended")
        context = request.prompt if request.continues_text else ()
        run = _Run(request, Detokenizer(self._decode, context), StopStrings(request.parameters.stop))

        def cancel() -> None:
            run.cancelled = True

        run.stream = AnswerStream(cancel)
        with self._changed:
            self.requests.append(request)
            self._runs.append(run)
            self._counters.submitted += 1
            self._changed.notify_all()
        return run.stream

    def metrics(self) -> EngineMetrics:
        counters = self._counters
        return EngineMetrics(
            healthy=self.healthy,
            queue_length=max(0, len(self._runs) - self._max_batch),
            running=min(len(self._runs), self._max_batch),
            reading=0,
            max_batch=self._max_batch,
            submitted=counters.submitted,
            refused=counters.refused,
            finished=dict(counters.finished),
            prefilled_tokens=counters.prefilled_tokens,
            prompt_tokens=counters.prompt_tokens,
            cached_tokens=counters.cached_tokens,
            generated_tokens=counters.generated_tokens,
            decode_steps=counters.decode_steps,
            decode_rows=counters.decode_rows,
            drafted_tokens=counters.drafted_tokens,
            accepted_tokens=counters.accepted_tokens,
            preemptions=counters.preemptions,
            queued=counters.queued.snapshot(),
            first_token=counters.first_token.snapshot(),
            token_gap=counters.token_gap.snapshot(),
            prompt_cache_bytes=0,
            memory=MemoryReport(1000, 10, 20, {"kv": 10}, 0.25),
        )

    @property
    def running(self) -> int:
        return len(self._runs)

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._runs or self._closing)
                if self._closing:
                    for run in self._runs:
                        self._end(run, "cancelled")
                    self._runs.clear()
                    return
                runs = self._runs[: self._max_batch]
            for run in runs:
                if self.going.is_set() and not run.cancelled:
                    self._step(run)
                elif run.cancelled:
                    self._end(run, "cancelled")
            with self._changed:
                self._runs = [run for run in self._runs if run.stream.finished is None]
            time.sleep(self._step_s if self.going.is_set() else 0.002)

    def _step(self, run: _Run) -> None:
        if self.error is not None and run.given:
            self._end(run, "error")
            return
        token = self._script[run.given % len(self._script)]
        run.given += 1
        self._counters.generated_tokens += 1
        if run.given == 1:
            self._counters.first_token.add(0.02)
        text = "" if token in self._stop_ids else run.stop.push(run.detokenizer.push(token))
        reason: EndReason | None = None
        if token in self._stop_ids or run.stop.found is not None:
            reason = "stop"
        elif run.given >= run.request.parameters.max_new_tokens:
            reason = "length"
        if reason is not None:
            text += run.stop.flush()
        top = run.request.top_logprobs
        logprobs = None
        if top is not None:
            logprobs = TokenLogprobs(-0.25, tuple((token + i, -0.25 - i) for i in range(top)))
        run.stream.put(TokenEvent(token, text, logprobs))
        if reason is not None:
            self._end(run, reason)

    def _end(self, run: _Run, reason: EndReason) -> None:
        self.ended.append(reason)
        self._counters.finished[reason] += 1
        length = len(run.request.prompt)
        error = self.error if reason == "error" else None
        run.stream.put(Finished(reason, length, length // 2, run.given, error))
