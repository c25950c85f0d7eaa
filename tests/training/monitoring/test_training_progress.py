"""What a run says on a terminal, and where there is none."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console
from training_runs import step_record

from bitnet_onnx.training.monitoring import ProgressLine
from bitnet_onnx.training.records import EvaluationRecord, RollbackRecord


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def spoken(terminal: bool, resumed: int = 0, width: int = 100) -> str:
    output, clock = io.StringIO(), Clock()
    console = Console(file=output, force_terminal=terminal, width=width, legacy_windows=False)
    line = ProgressLine(console, 100, interval=30, clock=clock)
    line.begin(resumed)
    for step in range(resumed + 1, 101):
        clock.now += 1.0
        line.step(step_record(step, loss=2.0, seconds=0.5))
        if step == 50:
            line.evaluation(EvaluationRecord(50, 1.5, 4.4817, 100, best=True, seconds=1))
            line.rollback(RollbackRecord(51, 50, "loss is nan", 1))
    line.close()
    return output.getvalue()


def test_without_a_terminal_there_is_a_line_now_and_then() -> None:
    text = spoken(terminal=False).splitlines()
    assert text[0] == "step 1/100: loss 2.0000, perplexity 7.389, 1,024 tokens/s, 1:39 left"
    assert text[1].startswith("step 31/100: ")
    assert text[2] == "step 50/100: validation loss 1.5000, perplexity 4.482, the best so far"
    assert text[3] == "step 51: loss is nan; back to step 50, rollbacks left: 1"
    assert text[-1].startswith("step 100/100: ")
    assert text[-1].endswith(" 0:00 left")
    assert len(text) == 7


def test_the_time_left_is_that_of_this_part() -> None:
    text = spoken(terminal=False, resumed=80).splitlines()
    assert text[0] == "step 80/100: the run goes on from its checkpoint"
    assert text[1].endswith(" 0:19 left")


@pytest.mark.parametrize("what", ["100/100", "loss 2.0000, perplexity 7.389, 1,024 tokens/s", "validation loss 1.5000"])
def test_a_terminal_has_a_bar(what: str) -> None:
    text = spoken(terminal=True)
    assert what in text
    assert "━" in text


def test_a_narrow_terminal_has_step_loss_and_time_whole() -> None:
    text = re.sub(r"\x1b\[[?\d;]*\w", "", spoken(terminal=True, width=60))
    assert "100/100 loss 2.0000" in text
    assert "…" not in text
    assert "4.482, the \nbest so far" in text, "lines break between words"
