"""What is asked of the engine, and what it answers: shared by whoever submits and whoever computes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from bitnet_onnx.errors import BitnetOnnxError
from bitnet_onnx.runtime.sampling import SamplingParameters

#: Why an answer ended: an end token or stop string, `max_new_tokens`, a full context, the caller, its deadline, or a
#: failure that is told in `Finished.error`.
EndReason: TypeAlias = Literal["stop", "length", "context", "cancelled", "deadline", "error"]


class EngineBusyError(BitnetOnnxError):
    """The queue is full or the memory is spent: come again later.

    Attributes:
        retry_after_s: seconds after which it is worth another try.
    """

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Constraint(Protocol):
    """What an answer must look like, token by token; one object for one answer."""

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Which tokens may come next, `[vocab_size]`; at least one is true."""
        ...

    def accept(self, token: int) -> None:
        """Tells which token was chosen.

        Raises:
            BitnetOnnxError: the token was not allowed, or the constraint failed: the answer ends with an error.
        """
        ...

    @property
    def complete(self) -> bool:
        """Whether nothing but the end may follow."""
        ...


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One answer to compute.

    Attributes:
        prompt: token ids, at least one, within the vocabulary and the context.
        parameters: of sampling and ending.
        priority: larger goes first; among equals who came first.
        deadline_s: seconds from submission after which it ends, or None.
        tenant: answers of one tenant never read what another's prompts left in the prompt cache.
        top_logprobs: how many alternatives to report with each token, 0 to 20; None reports nothing.
        constraint: what the answer must look like, or None.
        continues_text: the answer continues the text of the prompt, whose end matters for the first characters.
    """

    prompt: tuple[int, ...]
    parameters: SamplingParameters = field(default_factory=SamplingParameters)
    priority: int = 0
    deadline_s: float | None = None
    tenant: str = ""
    top_logprobs: int | None = None
    constraint: Constraint | None = None
    continues_text: bool = False


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of probabilities before temperature and filters.

    Attributes:
        chosen: of the chosen token.
        top: the likeliest tokens, likeliest first, as pairs of id and logarithm.
    """

    chosen: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One token, and the text that became certain with it (often empty)."""

    id: int
    text: str
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """How an answer ended.

    Attributes:
        reason: why.
        prompt_tokens: length of the prompt.
        cached_tokens: of these, taken from the prompt cache.
        completion_tokens: generated, the end token included.
        error: what failed, where `reason` is `error`.
    """

    reason: EndReason
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    error: BitnetOnnxError | None = None


#: What a stream yields: tokens, and at the end how it ended.
Event: TypeAlias = TokenEvent | Finished
