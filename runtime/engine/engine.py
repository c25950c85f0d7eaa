"""The batching engine: requests in from any thread, streams of tokens out, one thread that computes."""

from __future__ import annotations

import logging
import operator
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from bitnet_onnx.activations import check_activation_bits
from bitnet_onnx.errors import BitnetOnnxError, InputError
from bitnet_onnx.package_format import MODEL_DATA
from bitnet_onnx.runtime._prefault import prefault
from bitnet_onnx.runtime._speculation import IDLE, check_draft_tokens
from bitnet_onnx.runtime.devices import Device, select_device
from bitnet_onnx.runtime.engine._interfaces import BatchSessionLike
from bitnet_onnx.runtime.engine._prompt_cache import BlockKeys, PromptCache
from bitnet_onnx.runtime.engine._run import Run
from bitnet_onnx.runtime.engine._scheduler import Scheduler
from bitnet_onnx.runtime.engine.batch_session import BatchSession
from bitnet_onnx.runtime.engine.metrics import Counters, EngineMetrics
from bitnet_onnx.runtime.engine.request import EngineBusyError, EngineRequest
from bitnet_onnx.runtime.engine.stream import AnswerStream
from bitnet_onnx.runtime.kv_scales import KvType, check_kv_type, scales_for
from bitnet_onnx.runtime.memory import HybridMemoryPool, default_budget
from bitnet_onnx.runtime.package import PackageInfo
from bitnet_onnx.runtime.prompts import PromptEncoder

logger = logging.getLogger(__name__)

_MAX_TOP_LOGPROBS = 20
_MAX_BATCH = 1024
_MAX_CHUNK = 65536
_MAX_QUEUE = 1 << 20
_RETRY_AFTER_BOUNDS_S = (1.0, 60.0)


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How many requests are taken, and how they share the machine.

    Args:
        max_batch: most answers generated at a time.
        prefill_chunk: most tokens of a prompt read between two steps of the running answers.
        max_queue: most requests that wait for a slot; more are refused.
        prompt_cache_bytes: most bytes of keys and values kept of prompts read before; 0 keeps none.
        prompt_cache_block: tokens of one block of the prompt cache; whole blocks are shared.
        idle_trim_s: seconds without work after which memory is given back.
        speculate: most tokens of an answer guessed at a time from its own text, and read together if that is expected
            to save time; 0 guesses none. Answers stay the same.
        kv: how keys and values are held; for int8 scales are measured when the engine is opened, unless the package has
            them.
        activation_bits: of the linear layers: 8, 16 or 0 (floats) instead of what the package says.

    Raises:
        InputError: a value is outside its range.
    """

    max_batch: int = 16
    prefill_chunk: int = 256
    max_queue: int = 256
    prompt_cache_bytes: int = 256 << 20
    prompt_cache_block: int = 64
    idle_trim_s: float = 10.0
    speculate: int = 0
    kv: KvType = "float32"
    activation_bits: int | None = None

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("max_batch", self.max_batch, 1, _MAX_BATCH),
            ("prefill_chunk", self.prefill_chunk, 1, _MAX_CHUNK),
            ("max_queue", self.max_queue, 1, _MAX_QUEUE),
            ("prompt_cache_bytes", self.prompt_cache_bytes, 0, 1 << 62),
            ("prompt_cache_block", self.prompt_cache_block, 1, _MAX_CHUNK),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise InputError(f"{name} is {value!r:.40}, expected an integer from {least} to {most}")
        check_draft_tokens("speculate", self.speculate)
        check_kv_type(self.kv)
        if self.activation_bits is not None:
            check_activation_bits(self.activation_bits)
        if not 0 < self.idle_trim_s < float("inf"):
            raise InputError(f"idle_trim_s is {self.idle_trim_s!r:.40}, expected a number of seconds above 0")


_DEFAULT_SETTINGS = EngineSettings()


class Engine:
    """Answers many requests at a time through one batch session.

    `start` makes the thread that computes; without one, `step` does its work call by call. The session is used by that
    thread alone. A request that fails ends alone; when the thread itself dies, `healthy` turns false and every stream
    ends with an error.

    Args:
        session: the decoder.
        decode: token ids to text, without control tokens.
        stop_ids: tokens that end an answer.
        memory: the pool that the prompt cache takes its bytes from.
        settings: limits.
        clock: seconds, from any beginning.
    """

    def __init__(
        self,
        session: BatchSessionLike,
        decode: Callable[[Sequence[int]], str],
        stop_ids: frozenset[int],
        memory: HybridMemoryPool,
        settings: EngineSettings = _DEFAULT_SETTINGS,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self._session = session
        self._decode = decode
        self._stop_ids = stop_ids
        self._memory = memory
        self._clock = clock
        self._counters = Counters()
        self._cache = PromptCache(memory, settings.prompt_cache_bytes, settings.prompt_cache_block)
        if settings.speculate and not session.exact:
            logger.warning(IDLE)
        draft = settings.speculate if session.exact else 0
        self._scheduler = Scheduler(session, self._cache, self._counters, settings.max_batch, clock, draft_tokens=draft)
        self._changed = threading.Condition()
        self._inbox: list[Run] = []
        self._arrivals = 0
        self._thread: threading.Thread | None = None
        self._closing = False
        self._draining = False
        self._ended = False
        self._failure: BitnetOnnxError | None = None
        self._last_finish: float | None = None
        self._seconds_per_answer = 0.0

    @classmethod
    def open(
        cls,
        path: str | Path,
        settings: EngineSettings = _DEFAULT_SETTINGS,
        *,
        memory: HybridMemoryPool | None = None,
        threads: int | None = None,
        device: Device | None = None,
        prompts: PromptEncoder | None = None,
    ) -> Self:
        """An engine over a package; `start` it, or use it in a `with` statement.

        Args:
            path: the package directory.
            settings: limits.
            memory: the budget; None: a share of what the machine has.
            threads: threads of one operator; None: as many as there are physical cores.
            device: where it runs; None: `select_device()`.
            prompts: the text side of the same package, if it is open already.

        Raises:
            PackageError: the directory is not a usable package.
            UnsupportedError: the graph has a form that has no int8 cache.
            BitnetOnnxError: the budget is too small for one step.
        """
        prompts = PromptEncoder(PackageInfo.open(path)) if prompts is None else prompts
        device = select_device(prompts.package.operators) if device is None else device
        memory = HybridMemoryPool(default_budget()) if memory is None else memory
        session = BatchSession(
            prompts.package,
            device,
            memory,
            threads=threads,
            max_batch=settings.max_batch,
            prefill_chunk=settings.prefill_chunk,
            activation_bits=settings.activation_bits,
            draft_tokens=settings.speculate if device.operator_library is not None else 0,
            kv_scales=scales_for(prompts.package, device, settings.kv, threads=threads),
        )
        if device.operator_library is not None:  # the function bodies repack the weights and leave these pages alone
            prefault(prompts.package.directory / MODEL_DATA)
        return cls(session, prompts.tokenizer.decode, prompts.stop_ids, memory, settings)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def healthy(self) -> bool:
        """Whether requests are answered: false when the thread has died or the engine is closed."""
        return self._failure is None and not self._closing

    def start(self) -> None:
        """Starts the thread that computes; a second call does nothing.

        Raises:
            BitnetOnnxError: the engine is closed.
        """
        with self._changed:
            if self._closing:
                raise BitnetOnnxError("the engine is closed: open a new one")
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="bitnet-onnx engine", daemon=True)
                self._thread.start()

    def close(self, drain: bool = False) -> None:
        """Takes no more requests, ends, and waits for the end; a second call may cut a draining one short.

        Args:
            drain: answer first what was submitted; otherwise all streams end as cancelled.
        """
        with self._changed:
            self._draining = drain and (self._draining or not self._closing)
            self._closing = True
            self._changed.notify_all()
            thread = self._thread
        if thread is None:
            self._run_down()
        elif thread is not threading.current_thread():
            thread.join()

    def submit(self, request: EngineRequest) -> AnswerStream:
        """Queues a request.

        Raises:
            InputError: the prompt is empty, longer than the context, or has ids outside the vocabulary; the deadline or
                `top_logprobs` is out of range.
            EngineBusyError: the queue is full.
            BitnetOnnxError: the engine is closed, or its thread has died.
        """
        self._check(request)
        keys = BlockKeys(request.tenant, self._cache.block_tokens)
        run = Run(request, 0, self._clock(), self._decode, self._stop_ids, self._session.context_length, keys)
        with self._changed:
            if self._failure is not None:
                raise BitnetOnnxError(f"the engine has failed: {self._failure}")
            if self._closing:
                raise BitnetOnnxError("the engine is closed")
            waiting = self._queue_length()
            if waiting >= self.settings.max_queue:
                self._counters.refused += 1
                raise EngineBusyError(f"{waiting} requests wait already, the most that may", self._retry_after_s())
            run.order = (-request.priority, self._arrivals)
            self._arrivals += 1
            self._counters.submitted += 1
            self._inbox.append(run)
            self._changed.notify_all()
        return run.stream

    def step(self) -> bool:
        """One step of the engine, for callers that have not started its thread.

        Returns:
            Whether anything is left to do.
        """
        with self._changed:
            taken, self._inbox = self._inbox, []
            self._scheduler.add(taken)
        ended = sum(self._counters.finished.values())
        busy = self._scheduler.step()
        self._count_time(sum(self._counters.finished.values()) - ended)
        return busy

    def metrics(self) -> EngineMetrics:
        """A snapshot, from any thread."""
        counters, scheduler = self._counters, self._scheduler
        return EngineMetrics(
            healthy=self.healthy,
            queue_length=self._queue_length(),
            running=len(scheduler.resident),
            reading=scheduler.reading,
            max_batch=self.settings.max_batch,
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
            prompt_cache_bytes=self._cache.nbytes,
            memory=self._memory.report(),
        )

    def _queue_length(self) -> int:
        return len(self._inbox) + len(self._scheduler.waiting)

    def _check(self, request: EngineRequest) -> None:
        vocab, context = self._session.vocab_size, self._session.context_length
        if not 1 <= len(request.prompt) <= context:
            raise InputError(
                f"the prompt has {len(request.prompt)} tokens, expected 1 to {context}, the model's context"
            )
        for token in request.prompt:
            try:
                fits = 0 <= operator.index(token) < vocab
            except TypeError:
                fits = False
            if not fits:
                raise InputError(f"token id {token!r:.40} is outside the model's vocabulary of {vocab}")
        top, deadline = request.top_logprobs, request.deadline_s
        if top is not None and (isinstance(top, bool) or top not in range(_MAX_TOP_LOGPROBS + 1)):
            raise InputError(f"top_logprobs is {top!r:.40}, expected 0 to {_MAX_TOP_LOGPROBS}")
        if deadline is not None and not deadline > 0:
            raise InputError(f"deadline_s is {deadline!r:.40}, expected seconds above 0")

    def _loop(self) -> None:
        try:
            busy = False
            while self._wait_for_work(busy):
                busy = self.step()
            self._run_down()
        except BaseException as error:
            self._die(error)

    def _wait_for_work(self, busy: bool) -> bool:
        """Waits until there is something to do; False when the engine is to end."""
        trimmed = busy
        while True:
            with self._changed:
                if not (busy or self._inbox or self._closing):
                    self._changed.wait(None if trimmed else self.settings.idle_trim_s)
                if self._closing or busy or self._inbox:
                    return not self._closing
            if not trimmed:
                trimmed = True
                self._trim()

    def _trim(self) -> None:
        try:
            self._session.trim()
        except Exception:
            logger.exception("idle memory could not be given back")

    def _run_down(self) -> None:
        """Answers what is left if so wished, ends the rest, and gives all memory back."""
        if self._ended:
            return
        self._ended = True
        while self._draining and self.step():
            pass
        with self._changed:
            self._scheduler.add(self._inbox)
            self._inbox = []
        self._scheduler.end_all("cancelled")
        self._cache.clear()
        self._trim()

    def _die(self, error: BaseException) -> None:
        logger.critical("the engine's thread died", exc_info=error)
        failure = BitnetOnnxError(
            f"the engine's thread died: {type(error).__name__}: {' '.join(str(error).split()):.200}; start it anew"
        )
        with self._changed:
            self._failure = failure
            runs = [*self._inbox, *self._scheduler.resident, *self._scheduler.waiting]
            self._inbox = []
        for run in runs:
            run.stream.put(run.finished("error", failure))

    def _count_time(self, ended: int) -> None:
        """Keeps the mean time between two ends of answers, for `retry_after_s`."""
        now = self._clock()
        if ended:
            if self._last_finish is not None:
                self._seconds_per_answer += 0.2 * ((now - self._last_finish) / ended - self._seconds_per_answer)
            self._last_finish = now

    def _retry_after_s(self) -> float:
        least, most = _RETRY_AFTER_BOUNDS_S
        return min(max(self._seconds_per_answer, least), most)
