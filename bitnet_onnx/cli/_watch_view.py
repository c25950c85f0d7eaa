"""A server on one screen, of any size: lines of text, below each other or, where it is wide, in two columns."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from bitnet_onnx.cli._console import printable, size
from bitnet_onnx.cli._watch_history import History
from bitnet_onnx.runtime.engine.metrics import EngineMetrics, Histogram

_LABEL = 14
_WIDE, _TALL = 110, 12
_OWNER_STYLES = ("cyan", "magenta", "yellow", "green", "blue", "red")
_FULL = 0.9
#: A snapshot that is older than this is told to be.
_STALE_S = 5.0
_HTTP_CLASSES = {"2xx": "green", "4xx": "yellow", "429": "yellow", "5xx": "red"}


@dataclass(slots=True)
class Watched:
    """What the view shows.

    Attributes:
        address: of the server.
        footer: how the view is ended.
        history: of its snapshots.
        state: whether it serves, is on its way down, or could not be asked.
        detail: why it could not, in a few words.
        messages: what was logged, the newest last.
    """

    address: str
    footer: str
    history: History = field(default_factory=History)
    state: Literal["serving", "ending", "no answer"] = "serving"
    detail: str = ""
    messages: deque[str] = field(default_factory=lambda: deque(maxlen=200))


@dataclass(frozen=True, slots=True)
class _Glyphs:
    """What is drawn with: a terminal that knows only ASCII gets a coarser picture."""

    steps: str
    full: str
    empty: str
    dot: str


_BLOCKS = _Glyphs(" ▁▂▃▄▅▆▇█", "█", "░", "●")
_ASCII = _Glyphs(" .:+#", "#", ".", "*")


class View:
    """Draws what is watched as it is at that moment, for the terminal's size at that moment."""

    def __init__(self, watched: Watched, clock: Callable[[], float] = time.monotonic) -> None:
        self._watched = watched
        self._clock = clock

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.max_width, options.height or options.size.height
        drawing = _Drawing(self._watched, _ASCII if options.ascii_only else _BLOCKS, self._clock())
        wide = width >= _WIDE and height >= _TALL and bool(self._watched.history)
        yield drawing.wide(width, height) if wide else drawing.narrow(width, height)


class _Drawing:
    """One picture."""

    def __init__(self, watched: Watched, glyphs: _Glyphs, now: float) -> None:
        self._watched = watched
        self._history = watched.history
        self._glyphs = glyphs
        self._now = now

    def narrow(self, width: int, height: int) -> RenderableType:
        """One line for each thing, what matters least left out where there is no room."""
        head, foot = [self._header(width)], [Text(self._watched.footer, "dim")]
        if not self._history:
            return _fit([*head, Text(), Text(f"waiting for the first answer {self._watched.detail}"), *foot], width)
        sections = [
            self._charts(width, 1),
            self._latencies(),
            self._load(width),
            self._memory(width),
            self._answers(width),
        ]
        messages = [Text(line, "yellow") for line in list(self._watched.messages)[-2:]]
        room = height - len(head) - len(foot)
        while len(sections) > 1 and sum(map(len, sections)) > room:
            sections.pop()
        blank = sum(map(len, sections)) + len(sections) + len(messages) <= room
        lines = list(head)
        for section in sections:
            lines += [Text(), *section] if blank else section
        spare = max(height - len(lines) - len(foot), 0)
        foot = [*messages[max(len(messages) - spare, 0) :], *foot]
        lines += [Text()] * (height - len(lines) - len(foot))
        return _fit([*lines, *foot][:height], width)

    def wide(self, width: int, height: int) -> RenderableType:
        """Charts on the left, all else on the right, what was logged below."""
        messages = list(self._watched.messages)[-4:] if height >= 30 else []
        room = height - 2 - (len(messages) + 2 if messages else 0)
        left = width // 2
        right = width - left
        chart_rows = max((room - 2) // 3 - 1, 1)
        charts = self._panel("last minute", self._charts(left - 4, chart_rows), left)
        panels: list[Panel] = []
        used = 0
        for title, lines in (
            ("time, last minute", self._latencies()),
            ("load", self._load(right - 4)),
            ("memory", self._memory(right - 4)),
            ("since the start", self._answers(right - 4)),
        ):
            used += len(lines) + 2
            if used > room:
                break
            panels.append(self._panel(title, lines, right))
        columns = Table.grid(padding=0)
        columns.add_column(width=left)
        columns.add_column(width=right)
        columns.add_row(charts, Group(*panels))
        below = [self._panel("messages", [Text(line, "yellow") for line in messages], width)] if messages else []
        return Group(_cropped(self._header(width), width), columns, *below, Text(self._watched.footer, "dim"))

    def _panel(self, title: str, lines: Sequence[Text], width: int) -> Panel:
        content = Group(*(_cropped(line, width - 4) for line in lines))
        return Panel(content, title=title, title_align="left", border_style="dim", width=width)

    def _header(self, width: int) -> Text:
        watched, style = self._watched, "green"
        state = watched.state
        words = state if not watched.detail else f"{state}: {watched.detail}"
        up = ""
        if self._history:
            last = self._history.last
            if state == "serving" and not last.engine.healthy:
                words, style = "the engine has failed", "red"
            age = self._now - self._history.updated_at
            if state == "no answer" or age > _STALE_S:
                words, style = f"{words} for {age:.0f} s", "red"
            if last.started_at is not None:
                up = f"  up {_clock(max(time.time() - last.started_at, 0))}"
            if state == "ending":
                count = last.engine.running + last.engine.queue_length
                words, style = f"ending: {count} answer{'s' if count != 1 else ''} to go", "yellow"
        right = Text.assemble((f"{self._glyphs.dot} {words}", f"bold {style}"), (up, "dim"))
        model = printable(self._history.last.model) if self._history else ""
        left = Text.assemble((model, "bold"), "  ", (watched.address, "dim"))
        left = _cropped(left, max(width - right.cell_len - 2, 0))
        return left.append(" " * max(width - left.cell_len - right.cell_len, 0)).append_text(right)

    def _charts(self, width: int, rows: int) -> list[Text]:
        history = self._history
        generated = history.rate(lambda e: e.generated_tokens)
        read = history.rate(lambda e: e.prefilled_tokens)
        waiting = history.last.engine.queue_length
        columns = max(width - (_LABEL + 17 if rows == 1 else 0), 1)
        lines: list[Text] = []
        for label, value, values, style in (
            ("generated", f"{generated:.0f} tokens/s", history.rates(lambda e: e.generated_tokens, columns), "green"),
            ("read", f"{read:.0f} tokens/s", history.rates(lambda e: e.prefilled_tokens, columns), "blue"),
            ("queue", f"{waiting} waiting", history.levels(lambda e: e.queue_length, columns), "yellow"),
        ):
            chart = self._chart(values, rows, style)
            if rows == 1:
                lines.append(_labelled(label, Text(f"{value:>15}  ", "bold"), chart[0]))
            else:
                most = Text(f"most {max(values):.0f}", "dim")
                head = _labelled(label, Text(value, "bold"))
                lines.append(head.append(" " * max(width - head.cell_len - most.cell_len, 1)).append_text(most))
                lines += chart
        return lines

    def _chart(self, values: Sequence[float], rows: int, style: str) -> list[Text]:
        """Columns of blocks, the highest of which fills all rows."""
        steps = self._glyphs.steps
        levels = len(steps) - 1
        most = max(values)
        # Whatever is more than nothing is to be seen.
        heights = [max(round(value / most * rows * levels), 1) if value > 0 else 0 for value in values]
        return [
            Text("".join(steps[min(max(height - row * levels, 0), levels)] for height in heights), style)
            for row in reversed(range(rows))
        ]

    def _latencies(self) -> list[Text]:
        names: tuple[tuple[str, Callable[[EngineMetrics], Histogram]], ...] = (
            ("first token", lambda e: e.first_token),
            ("token gap", lambda e: e.token_gap),
            ("in the queue", lambda e: e.queued),
        )
        lines = []
        for label, histogram in names:
            durations = self._history.durations(histogram)
            values = Text()
            for name, share in (("p50", 0.5), ("p95", 0.95)):
                values.append(f"{name} ", "dim").append(f"{_seconds(durations.quantile(share)):>8}   ", "bold")
            lines.append(_labelled(label, values))
        return lines

    def _load(self, width: int) -> list[Text]:
        history, engine = self._history, self._history.last.engine
        steps = history.gained(lambda e: e.decode_steps)
        rows = history.gained(lambda e: e.decode_rows) / steps if steps else 0.0
        looked_up = history.gained(lambda e: e.prompt_tokens)
        hits = history.gained(lambda e: e.cached_tokens) / looked_up if looked_up else 0.0
        in_all = engine.cached_tokens / engine.prompt_tokens if engine.prompt_tokens else 0.0
        slots = f"{engine.running} of {engine.max_batch}" + (f", {engine.reading} reading" if engine.reading else "")
        bars = (
            ("slots", engine.occupancy, slots),
            ("batch", rows / engine.max_batch, f"{rows:.1f} answers a step"),
            ("cache hits", hits, f"{hits:.0%} of prompts, {in_all:.0%} in all"),
        )
        return [
            _labelled(label, self._bar([(share, "cyan")], self._bar_width(width)), Text(f"  {words}"))
            for label, share, words in bars
        ]

    def _memory(self, width: int) -> list[Text]:
        snapshot = self._history.last
        memory = snapshot.engine.memory
        owners = sorted(memory.by_owner.items(), key=lambda item: -item[1])
        parts = [
            (nbytes / max(memory.budget, 1), _OWNER_STYLES[index % len(_OWNER_STYLES)])
            for index, (_, nbytes) in enumerate(owners)
        ]
        style = "bold red" if memory.used > _FULL * memory.budget else ""
        used = Text.assemble("  ", (size(memory.used), style), f" of {size(memory.budget)}")
        lines = [_labelled("memory", self._bar(parts, self._bar_width(width)), used)]
        legend = [
            Text.assemble((self._glyphs.full, parts[index][1]), f" {printable(owner)[:20]} {size(nbytes)}")
            for index, (owner, nbytes) in enumerate(owners[: len(_OWNER_STYLES)])
        ]
        lines += _wrapped("", legend, width)
        facts = [f"peak {size(memory.peak)}", f"{memory.fragmentation:.0%} of kv unused"]
        if snapshot.resident_bytes is not None:
            facts.append(f"process {size(snapshot.resident_bytes)}")
        return lines + _wrapped("", [Text(fact, "dim") for fact in facts], width)

    def _answers(self, width: int) -> list[Text]:
        snapshot = self._history.last
        engine = snapshot.engine
        answers = [
            _count(reason, count, "bold red" if reason == "error" else "bold")
            for reason, count in engine.finished.items()
        ]
        classes = dict.fromkeys(_HTTP_CLASSES, 0)
        for status, count in snapshot.responses.items():
            name = "429" if status == 429 else f"{status // 100}xx"
            if name in classes:
                classes[name] += count
        responses = [_count(name, count, f"bold {_HTTP_CLASSES[name]}") for name, count in classes.items()]
        tokens = [
            _count("generated", engine.generated_tokens),
            _count("read", engine.prefilled_tokens),
            _count("from the cache", engine.cached_tokens),
        ]
        return [
            *_wrapped("answers", answers, width),
            *_wrapped("responses", responses, width),
            *_wrapped("tokens", tokens, width),
        ]

    def _bar_width(self, width: int) -> int:
        return max(min(width - _LABEL - 32, 40), 5)

    def _bar(self, parts: Sequence[tuple[float, str]], width: int) -> Text:
        """Shares of a whole, side by side; whatever is more than nothing is to be seen while there is room."""
        bar = Text()
        for share, style in parts:
            cells = max(round(share * width), 1) if share > 0 else 0
            bar.append(self._glyphs.full * min(cells, width - len(bar)), style)
        return bar.append(self._glyphs.empty * (width - len(bar)), "dim")


def _labelled(label: str, *parts: Text) -> Text:
    return Text.assemble((f"{label:<{_LABEL}}", "dim"), *parts)


def _count(name: str, count: int, style: str = "bold") -> Text:
    return Text.assemble((f"{name} ", "dim"), (f"{count:,}", style if count else "dim"))


def _wrapped(label: str, parts: Sequence[Text], width: int) -> list[Text]:
    """Parts side by side, as many in a line as fit."""
    lines: list[Text] = []
    for part in parts:
        if lines and lines[-1].cell_len + 2 + part.cell_len <= width:
            lines[-1].append("  ").append_text(part)
        else:
            lines.append(_labelled("" if lines else label, part))
    return lines


def _cropped(line: Text, width: int) -> Text:
    line = line.copy()
    line.truncate(max(width, 0))
    line.no_wrap = True
    line.overflow = "crop"
    return line


def _fit(lines: Sequence[Text], width: int) -> Group:
    return Group(*(_cropped(line, width) for line in lines))


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1e3:.0f} ms" if value < 1 else f"{value:.1f} s"


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}"
