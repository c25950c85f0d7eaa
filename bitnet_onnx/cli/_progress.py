"""A progress bar of the steps of something that takes minutes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from bitnet_onnx.cli._console import error_console, printable

#: Takes what is done now, how many steps of it, of how many.
Report = Callable[[str, int, int], None]


@contextmanager
def progress_bar() -> Iterator[Report | None]:
    """A bar on a terminal, None elsewhere."""
    if not error_console().is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=error_console(), transient=True) as bar:
        task = bar.add_task("opening", total=None)
        last = 0

        def report(what: str, done: int, total: int) -> None:
            nonlocal last
            if done <= last:  # the next stage: its pace is its own
                bar.reset(task)
            last = done
            bar.update(task, description=escape(printable(Path(what).name)), completed=done, total=total)

        yield report
