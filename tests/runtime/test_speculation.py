"""When a guess is worth its place in a step, and which rows share a call."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_onnx.runtime._prompt_lookup import NO_DRAFT, Draft
from bitnet_onnx.runtime._speculation import CALL, POSITIONS, choose_drafts, least_chance
from bitnet_onnx.runtime.engine._calls import Calls


def draft(chance: float, count: int) -> Draft:
    return Draft(tuple(range(count)), tuple(chance**i for i in range(1, count + 1)))


SURE = draft(0.98, 8)
DRAFTS = st.builds(draft, st.floats(0.01, 0.999), st.integers(0, 8))


def test_the_more_rows_the_surer_a_guess_must_be() -> None:
    assert least_chance(1) == pytest.approx(0.2)
    chances = [least_chance(rows) for rows in (1, 2, 4, 8, 16, 1024)]
    assert chances == sorted(chances)
    assert chances[-1] < 1


def test_one_row_tries_all_that_is_likely_enough() -> None:
    assert choose_drafts([SURE]) == [SURE.tokens]
    assert choose_drafts([draft(0.5, 8)]) == [(0, 1)]
    assert choose_drafts([draft(0.1, 8)]) == choose_drafts([draft(0.3, 8)]) == [()]
    assert choose_drafts([NO_DRAFT]) == [()]


def test_a_row_of_many_has_to_pay_for_a_call_of_its_own() -> None:
    assert choose_drafts([SURE, NO_DRAFT]) == [SURE.tokens, ()]
    assert choose_drafts([SURE] + [NO_DRAFT] * 15) == [()] * 16
    assert all(choose_drafts([draft(0.98, 3)] * 16))


def test_a_row_with_little_to_guess_is_not_padded_to_the_others() -> None:
    assert choose_drafts([SURE, SURE, SURE, draft(0.6, 1)])[3] == ()


@given(drafts=st.lists(DRAFTS, min_size=1, max_size=40))
def test_what_is_chosen_is_expected_to_save(drafts: list[Draft]) -> None:
    chosen = choose_drafts(drafts)
    assert all(tokens == each.tokens[: len(tokens)] for tokens, each in zip(chosen, drafts, strict=True))
    width, count = max(map(len, chosen)), sum(map(bool, chosen))
    if not width:
        return
    rows = len(drafts)
    saved = (1 + CALL / rows) * sum(sum(each.chances[: len(t)]) for t, each in zip(chosen, drafts, strict=True))
    assert saved > width * count + min(CALL, width * (rows - count)) + (CALL + rows) / 4
    assert count * (1 + width) <= POSITIONS


def calls(full: set[int] | None = None, positions: int = 64) -> Calls:
    full = full or set()
    return Calls(lambda slot, count: count == 1 or slot not in full, positions)


def test_rows_with_one_token_are_padded_only_where_that_is_cheaper_than_a_call() -> None:
    assert calls().split({0: 3, 1: 1}) == [([0, 1], 3)]
    assert calls().split({0: 1, 1: 9}) == [([0], 1), ([1], 9)]
    assert calls().split({slot: 2 if slot == 5 else 1 for slot in range(8)}) == [([0, 1, 2, 3, 4, 6, 7], 1), ([5], 2)]
    assert calls().split({3: 4, 1: 2}) == [([1, 3], 4)]
    assert calls().split({2: 1}) == [([2], 1)]


def test_a_row_without_room_is_apart() -> None:
    assert calls({1}).split({0: 3, 1: 1}) == [([1], 1), ([0], 3)]


def test_ranges_take_few_resting_rows_along() -> None:
    assert list(calls().ranges([0, 5], 1)) == [(0, 6)]
    assert list(calls().ranges([0, 6], 1)) == [(0, 1), (6, 7)]
    assert list(calls().ranges([0, 3], 2)) == [(0, 4)]
    assert list(calls().ranges([0, 4], 2)) == [(0, 1), (4, 5)]
    assert list(calls({2}).ranges([1, 3], 2)) == [(1, 2), (3, 4)]


@given(slots=st.sets(st.integers(0, 40), min_size=1), width=st.integers(1, 9), full=st.sets(st.integers(0, 40)))
def test_calls_are_bounded_and_hold_every_row_once(slots: set[int], width: int, full: set[int]) -> None:
    found = list(calls(full, positions=20).ranges(sorted(slots), width))
    held = [slot for first, stop in found for slot in range(first, stop)]
    assert len(held) == len(set(held))
    assert slots <= set(held)
    assert all((stop - first) * width <= 20 for first, stop in found)
    assert not {slot for slot in held if slot not in slots and width > 1} & full
