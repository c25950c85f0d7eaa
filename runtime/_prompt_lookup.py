"""Guesses of the next tokens of a text: it goes on as it did behind the same two tokens before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

#: Tokens of the text that are looked through, the last ones: about 1.5 MB for each text.
_WINDOW: Final = 8192
#: Equal tokens before a guess, by which guesses are told apart in how often they come true.
_LONGEST: Final = 8
#: How often guesses behind 2, 3, ... equal tokens come true, until the text itself tells: a guess.
_CHANCES: Final = (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8)
#: Of what one guess counts in these figures.
_WEIGHT: Final = 0.15


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens that may come next.

    Attributes:
        tokens: in their order.
        chances: for each, the estimated probability that it and all before it are right; falling.
    """

    tokens: tuple[int, ...]
    chances: tuple[float, ...]


NO_DRAFT: Final = Draft((), ())


class PromptLookup:
    """Follows one text and keeps account of how often its guesses come true, whether anybody asks for them or not.

    All of it is a function of the text: constant time for a token, constant memory.

    Args:
        text: prompt and answer; whoever owns it only appends.
        prompt: how many tokens of it are the prompt, of which no account is kept.
    """

    def __init__(self, text: Sequence[int], prompt: int) -> None:
        self._text = text
        self._chances = list(_CHANCES)
        # The position behind the last time that two tokens stood side by side.
        self._behind: dict[tuple[int, int], int] = {}
        first = max(prompt - _WINDOW, 0)
        known = max(prompt - 1, 0)
        self._behind.update(zip(pairwise(text[first:known]), range(first + 2, known + 1), strict=False))
        self._known = known
        # The guess: what stands at `_source` comes next, since so many tokens before it equal the last ones.
        self._source = 0
        self._equal = 0

    def follow(self) -> None:
        """Takes notice of the tokens that were appended."""
        text, behind = self._text, self._behind
        for position in range(self._known, len(text)):
            token = text[position]
            if self._equal:
                self._judge(text[self._source] == token)
            if position == 0:
                continue
            pair = (text[position - 1], token)
            found = behind.get(pair)
            if not self._equal and found is not None:
                self._source, self._equal = found, self._count_equal(found, position + 1)
            behind[pair] = position + 1
            self._forget(position - _WINDOW)
        self._known = len(text)

    def draft(self, most: int, least: float) -> Draft:
        """At most `most` tokens, as long as the chance that all are right is above `least`."""
        if not self._equal:
            return NO_DRAFT
        text, end = self._text, len(self._text)
        tokens: list[int] = []
        chances: list[float] = []
        chance = 1.0
        for index in range(most):
            chance *= self._chances[min(self._equal + index, _LONGEST) - 2]
            if chance <= least:
                break
            source = self._source + index
            # A guess that reaches its own beginning repeats itself.
            tokens.append(text[source] if source < end else tokens[source - end])
            chances.append(chance)
        return Draft(tuple(tokens), tuple(chances))

    def _judge(self, right: bool) -> None:
        kind = min(self._equal, _LONGEST) - 2
        self._chances[kind] += _WEIGHT * (right - self._chances[kind])
        if right:
            self._source += 1
            self._equal += 1
        else:
            self._equal = 0

    def _count_equal(self, source: int, end: int) -> int:
        """Tokens before `source` that equal those before `end`; two are known to."""
        equal = 2
        while equal < min(_LONGEST, source) and self._text[source - equal - 1] == self._text[end - equal - 1]:
            equal += 1
        return equal

    def _forget(self, position: int) -> None:
        if position < 1:
            return
        pair = (self._text[position - 1], self._text[position])
        if self._behind.get(pair) == position + 1:
            del self._behind[pair]
