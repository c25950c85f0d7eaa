"""From a checked request to answers of the engine: parameters, submission, usage."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from bitnet_onnx.errors import InputError
from bitnet_onnx.runtime.engine.request import EndReason, EngineRequest, Finished
from bitnet_onnx.runtime.sampling import SamplingParameters
from bitnet_onnx.runtime.server._interfaces import AnswerStreamLike, EngineLike
from bitnet_onnx.runtime.server.errors import ApiError, FieldError
from bitnet_onnx.runtime.server.schemas import GenerationRequest

_SEEDS = 2**63
_SMALLEST_TOP_P = 1e-9


def sampling_parameters(
    request: GenerationRequest, *, max_tokens: int, choice: int, vocab_size: int
) -> SamplingParameters:
    """How one answer is drawn; OpenAI's defaults, temperature 1 among them.

    Args:
        request: the checked request.
        max_tokens: most tokens of the answer.
        choice: its number among the answers to one prompt, which has a seed of its own.
        vocab_size: tokens of the model.

    Raises:
        FieldError: a value is outside its range.
    """
    biases = tuple((_token(key, vocab_size), value) for key, value in (request.logit_bias or {}).items())
    try:
        return SamplingParameters(
            max_new_tokens=max_tokens,
            temperature=1.0 if request.temperature is None else request.temperature,
            top_k=request.top_k or 0,
            # 0 means the likeliest token alone, which belongs to every set.
            top_p=1.0 if request.top_p is None else max(request.top_p, _SMALLEST_TOP_P),
            min_p=request.min_p or 0.0,
            repetition_penalty=1.0 if request.repetition_penalty is None else request.repetition_penalty,
            presence_penalty=request.presence_penalty or 0.0,
            frequency_penalty=request.frequency_penalty or 0.0,
            logit_bias=biases,
            seed=None if request.seed is None else (request.seed + choice) % _SEEDS,
            stop=request.stop or (),
        )
    except InputError as error:
        raise FieldError(None, str(error)) from None


def _token(key: str, vocab_size: int) -> int:
    if not key.isascii() or not key.isdigit() or len(key) > 9 or int(key) >= vocab_size:
        raise FieldError("logit_bias", f"{key!r:.40} is no token id from 0 to {vocab_size - 1}")
    return int(key)


def answer_length(wanted: int | None, default: int | None, prompt: Sequence[int], context: int, param: str) -> int:
    """The most tokens of an answer: what is wanted, or the default, or what the context leaves room for.

    Raises:
        FieldError: more is wanted than a whole context.
    """
    if wanted is not None and wanted > context:
        raise FieldError(param, f"{wanted} tokens are more than the model's context of {context}")
    room = max(1, context - len(prompt))
    return min(room, wanted or default or room)


def submit_all(engine: EngineLike, requests: Sequence[EngineRequest]) -> list[AnswerStreamLike]:
    """Submits all or none.

    Raises:
        ApiError: 503, the engine is dead.
        EngineBusyError, InputError: as `submit`.
    """
    if not engine.healthy:
        raise ApiError(503, "the engine has failed; restart the server", code="engine_dead")
    streams: list[AnswerStreamLike] = []
    try:
        for request in requests:
            streams.append(engine.submit(request))  # noqa: PERF401  # those before a failure are needed
    except BaseException:
        for stream in streams:
            stream.cancel()
        if not engine.healthy:
            raise ApiError(503, "the engine has failed; restart the server", code="engine_dead") from None
        raise
    return streams


def finish_reason(reason: EndReason) -> str:
    """OpenAI's word for why an answer ended."""
    return "stop" if reason == "stop" else "length"


@dataclass(slots=True)
class Usage:
    """Tokens of one request; a prompt counts once however many answers it has."""

    prompts: dict[int, Finished] = field(default_factory=dict)
    completion_tokens: int = 0

    def add(self, prompt: int, finished: Finished) -> None:
        """Counts one answer to the prompt of that number."""
        self.completion_tokens += finished.completion_tokens
        before = self.prompts.get(prompt)
        if before is None or finished.cached_tokens < before.cached_tokens:
            self.prompts[prompt] = finished

    def as_dict(self) -> dict[str, object]:
        """OpenAI's object."""
        prompt_tokens = sum(finished.prompt_tokens for finished in self.prompts.values())
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {
                "cached_tokens": sum(finished.cached_tokens for finished in self.prompts.values())
            },
        }


@dataclass(frozen=True, slots=True)
class Head:
    """What every object of one response begins with."""

    id: str
    kind: str
    created: int
    model: str

    @classmethod
    def new(cls, prefix: str, kind: str, model: str) -> Self:
        """A head with a fresh id."""
        return cls(f"{prefix}-{os.urandom(12).hex()}", kind, int(time.time()), model)

    def as_dict(self, **more: object) -> dict[str, object]:
        """The object with the rest of its fields."""
        return {"id": self.id, "object": self.kind, "created": self.created, "model": self.model, **more}
