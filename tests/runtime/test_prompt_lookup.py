"""Guesses from the text itself."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_onnx.runtime import _prompt_lookup
from bitnet_onnx.runtime._prompt_lookup import NO_DRAFT, PromptLookup

TEXTS = st.lists(st.integers(0, 3), min_size=1, max_size=60)


def guess(text: list[int], prompt: int, most: int = 8) -> tuple[int, ...]:
    lookup = PromptLookup(text, prompt)
    lookup.follow()
    return lookup.draft(most, 0.0).tokens


def test_the_text_goes_on_as_it_did_behind_the_same_two_tokens() -> None:
    assert guess([1, 2, 3, 4, 5, 9, 1, 2], 8) == (3, 4, 5, 9, 1, 2, 3, 4)
    assert guess([1, 2, 3, 1, 2, 4, 7, 1, 2], 9, most=2) == (4, 7)  # the last time
    assert guess([1, 2, 3], 3) == guess([1], 1) == guess([5, 2, 3, 1, 4, 2], 6) == ()
    assert guess([6, 6], 2) == ()
    assert guess([6, 6, 6], 3, most=4) == (6, 6, 6, 6)


def test_a_guess_that_comes_true_is_followed_and_another_is_not() -> None:
    text = [1, 2, 3, 4, 5, 6, 9, 2, 3]
    lookup = PromptLookup(text, 9)
    lookup.follow()
    sure = lookup.draft(1, 0.0).chances[0]
    text.append(4)
    lookup.follow()
    assert lookup.draft(2, 0.0).tokens == (5, 6)
    assert lookup.draft(1, 0.0).chances[0] > sure
    text.append(8)
    lookup.follow()
    assert lookup.draft(2, 0.0) == NO_DRAFT


def test_what_never_comes_true_is_soon_not_worth_a_draft() -> None:
    text = [1, 2, 3]
    lookup = PromptLookup(text, 3)
    for turn in range(12):
        # Behind 1, 2 stands what did not stand there before.
        text += [1, 2]
        lookup.follow()
        if turn == 0:
            assert lookup.draft(4, 0.2).tokens
        text.append(10 + turn)
        lookup.follow()
    text += [1, 2]
    lookup.follow()
    assert lookup.draft(4, 0.2) == NO_DRAFT
    assert lookup.draft(4, 0.0).tokens


def test_what_always_comes_true_is_worth_a_long_draft() -> None:
    text = [1, 2, 3, 4] * 2
    lookup = PromptLookup(text, 8)
    lookup.follow()
    before = len(lookup.draft(8, 0.8).tokens)
    for turn in range(40):
        text.append(1 + turn % 4)
        lookup.follow()
    draft = lookup.draft(8, 0.8)
    assert draft.tokens == (1, 2, 3, 4, 1, 2, 3, 4)
    assert before < 8
    assert list(draft.chances) == sorted(draft.chances, reverse=True)
    assert lookup.draft(3, 0.0).tokens == (1, 2, 3)
    assert lookup.draft(0, 0.0) == NO_DRAFT


@given(text=TEXTS, prompt=st.integers(1, 60), cuts=st.lists(st.integers(1, 60)))
def test_every_guess_stands_in_the_text_and_does_not_depend_on_when_it_is_asked_for(
    text: list[int], prompt: int, cuts: list[int]
) -> None:
    prompt = min(prompt, len(text))
    growing = text[:prompt]
    lookup = PromptLookup(growing, prompt)
    for cut in [*sorted(cuts), len(text)]:
        growing += text[len(growing) : cut]
        lookup.follow()
        lookup.draft(3, 0.3)
    whole = PromptLookup(text, prompt)
    whole.follow()
    draft = whole.draft(5, 0.0)
    assert lookup.draft(5, 0.0) == draft
    if draft.tokens:
        followed = [*text, *draft.tokens]
        ends = [at for at in range(2, len(text)) if text[at - 2 : at] == text[-2:]]
        assert any(followed[at : at + 5] == list(draft.tokens) for at in ends)
        assert all(0 < chance < 1 for chance in draft.chances)


@pytest.mark.parametrize("prompt", [1, 500])
def test_memory_is_bounded_and_what_is_older_is_forgotten(monkeypatch: pytest.MonkeyPatch, prompt: int) -> None:
    monkeypatch.setattr(_prompt_lookup, "_WINDOW", 50)
    text = list(range(prompt))
    lookup = PromptLookup(text, prompt)
    while len(text) < 500:
        text.append(len(text))
        lookup.follow()
        assert len(lookup._behind) <= 51
    assert sys.getsizeof(lookup._behind) < 10_000
    for first, found in ((440, False), (470, True)):
        again = [*text, first, first + 1]
        lookup = PromptLookup(again, len(again))
        lookup.follow()
        assert bool(lookup.draft(1, 0.0).tokens) is found
