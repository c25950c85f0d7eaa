"""The live view: what a minute of snapshots looks like on terminals of any size."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from server_snapshots import GENERATED, READ, WAITING, snapshot

from bitnet_onnx.cli._watch_history import History
from bitnet_onnx.cli._watch_view import View, Watched


def watched(seconds: int = 70) -> Watched:
    shown = Watched("http://127.0.0.1:8000", "Ctrl-C ends the view")
    for second in range(seconds):
        shown.history.add(100.0 + second, snapshot(second))
    return shown


def draw(shown: Watched, width: int, height: int, *, encoding: str = "utf-8", color: bool = False) -> list[str]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width, height=height, force_terminal=color, legacy_windows=False)
    options = console.options.update(height=height)
    now = shown.history.updated_at
    lines = console.render_lines(View(shown, lambda: now), options, pad=False)
    text = ["".join(segment.text for segment in line) for line in lines]
    for line in text:
        line.encode(encoding)
    return text


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (140, 40), (110, 24), (250, 70)])
def test_everything_is_there(width: int, height: int) -> None:
    text = "\n".join(draw(watched(), width, height))
    for words in (
        "tiny",
        "http://127.0.0.1:8000",
        "serving",
        f"{GENERATED} tokens/s",
        f"{READ} tokens/s",
        f"{WAITING} waiting",
        "first token",
        "token gap",
        "p50",
        "p95",
        "6 of 8, 1 reading",
        "4.0 answers a step",
        "50% of prompts, 50% in all",
        "25.0 MB of 100.0 MB",
        "kv 20.0 MB",
        "prompt cache 5.0 MB",
        "peak 30.0 MB",
        "25% of kv unused",
        "process 123.0 MB",
        "Ctrl-C ends the view",
    ):
        assert words in text, words
    if height > 24 or width < 110:
        for words in ("stop 207", "cancelled 69", "error 0", "2xx 207", "4xx 2", "429 1", "5xx 0", "generated 2,760"):
            assert words in text, words


def test_the_shares_of_a_bar() -> None:
    (line,) = [line for line in draw(watched(), 86, 24) if line.startswith("memory")]
    bar = line.split()[1]
    assert len(bar) == 40
    assert bar.count("█") == 10  # 25 of 100 MB


def test_a_chart_shows_a_minute() -> None:
    shown = Watched("address", "footer")
    total = 0
    for second in range(61):
        total += 0 if second <= 30 else 100
        last = snapshot(second)
        shown.history.add(second, replace(last, engine=replace(last.engine, generated_tokens=total)))
    (line,) = [line for line in draw(shown, 91, 24) if line.startswith("generated")]
    chart = line[-60:]
    assert chart.strip() == "█" * 30
    assert chart.endswith("█")


@given(width=st.integers(1, 260), height=st.integers(1, 80), seconds=st.integers(0, 5), messages=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_no_size_breaks_it(width: int, height: int, seconds: int, messages: int) -> None:
    shown = watched(seconds)
    shown.messages.extend(["12:00:00 warning: " + "long " * 60] * messages)
    lines = draw(shown, width, height)
    assert len(lines) <= height
    assert all(cell_len(line) <= width for line in lines)


@pytest.mark.parametrize("size", [(80, 24), (140, 40)])
def test_a_terminal_without_blocks(size: tuple[int, int]) -> None:
    text = "\n".join(draw(watched(), *size, encoding="ascii"))
    assert "####" in text
    assert "* serving" in text


def test_states() -> None:
    shown = watched()
    shown.state = "ending"
    assert "ending: 9 answers to go" in draw(shown, 80, 24)[0]
    shown.state, shown.detail = "no answer", "127.0.0.1:8000: Connection refused"
    assert "no answer: 127.0.0.1:8000: Connection refused for 0 s" in draw(shown, 120, 40)[0]
    shown.state, shown.detail = "serving", ""
    shown.history.add(200.0, snapshot(71, healthy=False))
    assert "the engine has failed" in draw(shown, 80, 24)[0]


def test_messages_stand_above_the_last_line() -> None:
    shown = watched()
    shown.messages.extend(["one", "two", "three"])
    lines = draw(shown, 80, 26)
    assert lines[-3:-1] == ["two", "three"]
    assert any("one" in line for line in draw(shown, 140, 40))


def test_names_from_elsewhere_cannot_move_the_cursor() -> None:
    shown = Watched("address", "footer")
    evil = "\x1b[2Jx"
    last = snapshot(3, model=evil)
    memory = replace(last.engine.memory, by_owner={evil: 10**6})
    shown.history.add(1.0, replace(last, engine=replace(last.engine, memory=memory)))
    for size in ((80, 24), (140, 40)):
        assert "\x1b" not in "".join(draw(shown, *size))


def test_rates() -> None:
    history = History()
    history.add(0.0, snapshot(0))
    assert history.rate(lambda e: e.generated_tokens) == 0
    for second in range(1, 200):
        history.add(second, snapshot(second))
    assert history.rate(lambda e: e.generated_tokens) == pytest.approx(GENERATED)
    assert history.gained(lambda e: e.decode_steps) == 600
    for count in (1, 7, 60, 200):
        assert history.rates(lambda e: e.generated_tokens, count) == pytest.approx([GENERATED] * count)
        assert history.levels(lambda e: e.queue_length, count) == pytest.approx([WAITING] * count)
    durations = history.durations(lambda e: e.first_token)
    assert durations.count == 240
    assert durations.quantile(0.5) == pytest.approx(0.2, abs=0.05)


def test_a_restart_begins_anew() -> None:
    history = History()
    history.add(0.0, snapshot(50))
    history.add(1.0, snapshot(1))
    assert history.rate(lambda e: e.generated_tokens) == 0
    history.add(2.0, snapshot(2))
    assert history.rate(lambda e: e.generated_tokens) == pytest.approx(GENERATED)
