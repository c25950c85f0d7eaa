"""Which tokens of a text are scored, and what the model has read before each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from bitnet_onnx.errors import InputError

#: Tokens of a window when the user names no number.
WINDOW: Final = 256


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens `start` to `stop` of a text, of which those from `first` on are scored."""

    start: int
    stop: int
    first: int


@dataclass(frozen=True, slots=True)
class WindowRule:
    """How a text is cut into windows; each is read from its first token, and what does not fill one is left out.

    The default is windows of 256 tokens, one after the other, with 255 tokens scored in each: the first has nothing
    before it. `size=1024, stride=512` is the strided rule of transformers' documentation but for its last, short
    window; `size=512, context=257` scores the second half of each window, as llama.cpp does.

    Attributes:
        size: tokens of a window.
        tokens: windows of so many tokens in all, spread evenly over the text; None: the whole text.
        stride: from one window to the next; None: `size`. Tokens that an earlier window scored are not scored again.
        context: tokens at the head of each window that are not scored; None: one, or none with `beginning`.
        beginning: the model's beginning token stands before each window.

    Raises:
        InputError: a number is out of range, or two contradict each other.
    """

    size: int = WINDOW
    tokens: int | None = None
    stride: int | None = None
    context: int | None = None
    beginning: bool = False

    def __post_init__(self) -> None:
        least = 1 if self.beginning else 2
        if self.size < least:
            raise InputError(f"the window is {self.size} tokens: expected at least {least}")
        if self.tokens is not None and self.tokens < self.size:
            raise InputError(f"tokens is {self.tokens}: expected at least {self.size}, one window")
        if self.tokens is not None and self.stride is not None:
            raise InputError("tokens and stride exclude each other: windows are spread evenly or by the stride")
        if self.stride is not None and not 1 <= self.stride <= self.size:
            raise InputError(f"stride is {self.stride}: expected 1 to {self.size}, the window")
        if self.context is None:
            return
        least = 0 if self.beginning else 1
        if not least <= self.context < self.size:
            raise InputError(f"context is {self.context}: expected {least} to {self.size - 1}")
        if self.context < self.size - self._step:
            raise InputError(
                f"context is {self.context}: with windows of {self.size} and a stride of {self.stride} tokens would be "
                f"scored twice; expected at least {self.size - self._step}"
            )

    @property
    def _step(self) -> int:
        return self.size if self.stride is None else self.stride

    @property
    def length(self) -> int:
        """Tokens that the model reads of a window, its beginning included."""
        return self.size + self.beginning

    def windows(self, count: int) -> list[Window]:
        """The windows of a text of `count` tokens; none where it is shorter than one."""
        if count < self.size:
            return []
        starts = range(0, count - self.size + 1, self._step)
        if self.tokens is not None and self.tokens // self.size < len(starts):
            starts = np.linspace(0, count - self.size, self.tokens // self.size).astype(int).tolist()
        return [Window(start, start + self.size, self._first(start)) for start in starts]

    def _first(self, start: int) -> int:
        if self.context is not None:
            return start + self.context
        if start and self._step < self.size:
            return start + self.size - self._step
        return start + (0 if self.beginning else 1)

    def describe(self) -> str:
        """The rule in words."""
        if self.tokens is not None:
            place = f"spread evenly, {self.tokens} tokens of each text at most"
        elif self._step < self.size:
            place = f"every {self._step} tokens"
        else:
            place = "one after the other"
        beginning = "with the beginning token" if self.beginning else "without a beginning token"
        if self.context is not None:
            scored = f"the first {self.context} tokens of each not scored"
        elif self._step < self.size:
            scored = "tokens scored once, in the first window that holds them"
        else:
            scored = "all tokens scored" if self.beginning else "all tokens but the first scored"
        return f"windows of {self.size} tokens {beginning}, {place}, {scored}"

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "window": self.size,
            "tokens": self.tokens,
            "stride": self._step if self.tokens is None else None,
            "context": self.context,
            "beginning_token": self.beginning,
            "rule": self.describe(),
        }
