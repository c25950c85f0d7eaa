"""From token ids to text piece by piece: no half characters, no stop strings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_REPLACEMENT = "\ufffd"
#: Tokens that are decoded again for the context of the next one; a character has at most four bytes.
_CONTEXT = 8
#: After as many tokens without a new character, what is pending is invalid bytes and not half a character.
_PATIENCE = 8
_MAX_WINDOW = 32


class Detokenizer:
    """Decodes a growing sequence in linear time: only a window of the last tokens is decoded again.

    A decoder shows an unfinished character as U+FFFD at the end of the text, and may treat the first token of
    a text differently (SentencePiece drops its space), so each window starts with tokens that were settled
    before. Text is emitted up to the first character that further tokens may still change. Works for byte-level
    vocabularies and for byte-fallback ones, through `decode` alone. Whatever is certain is emitted at once, so
    that nothing is left at the end but an unfinished character.

    Args:
        decode: token ids to text, without control tokens.
        context: tokens before the first one, such as the end of a prompt that is to be continued.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], context: Sequence[int] = ()) -> None:
        self._decode = decode
        self._window = list(context[-_CONTEXT:])
        self._settled = len(self._window)
        self._text = decode(self._window)
        self._emitted = len(self._text.rstrip(_REPLACEMENT))
        self._waiting = 0

    def push(self, token: int) -> str:
        """The text that became certain with one more token; often empty."""
        self._window.append(token)
        text = self._decode(self._window)
        if text == self._text and not self._decode([token]):
            # A control token. Kept, it would push real context out of the window.
            self._window.pop()
            return ""
        self._text = text
        certain = text.rstrip(_REPLACEMENT)
        piece = certain[self._emitted :]
        self._emitted = max(self._emitted, len(certain))
        self._waiting = 0 if piece else self._waiting + 1
        if len(certain) == len(text):
            self._slide(self._settled, held=0)
        elif self._waiting >= _PATIENCE:
            piece = text[self._emitted : -1]
            self._slide(len(self._window) - _CONTEXT, held=1)
        elif len(self._window) > _MAX_WINDOW:
            # Every token ends within a character and the next begins there: progress without a clean border.
            self._slide(len(self._window) - _CONTEXT, held=len(text) - len(certain))
        return piece

    def _slide(self, start: int, held: int) -> None:
        self._window = self._window[start:]
        self._settled = len(self._window)
        self._text = self._decode(self._window)
        self._emitted = len(self._text) - held
        self._waiting = 0


class StopStrings:
    """Lets text through up to the first stop string; a possible beginning of one is held back.

    Of several stop strings the one that is complete first wins, and of those complete at the same character
    the longest, however the text is cut into pieces.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.found: str | None = None

    def push(self, piece: str) -> str:
        """The part of the held text and `piece` that is safe to emit; nothing once a stop string was found."""
        if self.found is not None:
            return ""
        text = self._held + piece
        matches = [(start + len(stop), start, stop) for stop in self._stop if (start := text.find(stop)) >= 0]
        if matches:
            _, start, self.found = min(matches)
            self._held = ""
            return text[:start]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, when the text ends without a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, shorter than all of it."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
