"""Which tokens are scored."""

from __future__ import annotations

import re

import numpy as np
import pytest

from bitnet_onnx.errors import InputError
from bitnet_onnx.evaluation.quality.windows import Window, WindowRule


def scored(rule: WindowRule, count: int) -> list[int]:
    return [token for window in rule.windows(count) for token in range(window.first, window.stop)]


def test_the_default_is_one_window_after_the_other() -> None:
    rule = WindowRule()
    assert rule.windows(3 * 256 + 255) == [Window(start, start + 256, start + 1) for start in (0, 256, 512)]
    assert rule.windows(255) == []
    assert rule.length == 256


def test_windows_are_spread_evenly() -> None:
    rule = WindowRule(10, tokens=45)
    starts = [window.start for window in rule.windows(101)]
    assert starts == np.linspace(0, 91, 4).astype(int).tolist()
    assert all(window.stop - window.start == 10 for window in rule.windows(101))
    # A text that holds no more than was asked for is read whole, and no token twice.
    assert [window.start for window in rule.windows(43)] == [0, 10, 20, 30]
    assert [window.start for window in WindowRule(10, tokens=10).windows(101)] == [0]


def test_a_stride_scores_every_token_once() -> None:
    rule = WindowRule(8, stride=3)
    assert [(window.start, window.first) for window in rule.windows(20)] == [(0, 1), (3, 8), (6, 11), (9, 14), (12, 17)]
    assert scored(rule, 20) == list(range(1, 20))


def test_a_context_is_not_scored() -> None:
    assert scored(WindowRule(8, context=5), 16) == [5, 6, 7, 13, 14, 15]
    assert scored(WindowRule(8, context=6, stride=2), 12) == [6, 7, 8, 9, 10, 11]


def test_behind_a_beginning_token_all_are_scored() -> None:
    rule = WindowRule(4, beginning=True)
    assert scored(rule, 8) == list(range(8))
    assert rule.length == 5
    assert scored(WindowRule(1, beginning=True), 3) == [0, 1, 2]
    assert scored(WindowRule(4, context=0, beginning=True), 4) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 1}, "the window is 1 tokens: expected at least 2"),
        ({"size": 0, "beginning": True}, "the window is 0 tokens: expected at least 1"),
        ({"tokens": 255}, "tokens is 255: expected at least 256"),
        ({"tokens": 512, "stride": 5}, "exclude each other"),
        ({"stride": 0}, "stride is 0: expected 1 to 256"),
        ({"stride": 257}, "stride is 257: expected 1 to 256"),
        ({"context": 0}, "context is 0: expected 1 to 255"),
        ({"context": 256}, "context is 256: expected 1 to 255"),
        ({"size": 8, "stride": 2, "context": 5}, "scored twice; expected at least 6"),
    ],
)
def test_impossible_rules(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        WindowRule(**arguments)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (WindowRule(), "without a beginning token, one after the other, all tokens but the first scored"),
        (WindowRule(tokens=512, beginning=True), "with the beginning token, spread evenly"),
        (WindowRule(stride=64), "every 64 tokens, tokens scored once"),
        (WindowRule(context=128), "the first 128 tokens of each not scored"),
    ],
)
def test_the_rule_in_words(rule: WindowRule, words: str) -> None:
    assert words in rule.describe()
    assert rule.as_dict()["rule"] == rule.describe()
