"""What the two kinds of validation share on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from bitnet_onnx.cli._console import error_console, printable
from bitnet_onnx.evaluation import Progress, WeightCheck

#: What fails is listed up to this many.
LISTED: Final = 20


@contextmanager
def progress_bar() -> Iterator[Progress | None]:
    """A bar on a terminal; elsewhere nothing."""
    if not error_console().is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bar(*columns, console=error_console(), transient=True) as bar:
        task = bar.add_task("reading", total=None)

        def report(name: str, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, description=name)

        yield report


def print_weights(console: Console, weights: Sequence[WeightCheck]) -> None:
    """How many tensors are equal, and a table of those that are not."""
    failing = [check for check in weights if not check.holds]
    if failing:
        _table(console, failing)
    held = len(weights) - len(failing)
    by_error = sum(check.by_error and check.holds for check in weights)
    rest = f", {by_error} as far from it as the manifest says" if by_error else ""
    console.print(f"weights: {held - by_error} of {len(weights)} tensors are equal bit for bit{rest}")


def _table(console: Console, failing: list[WeightCheck]) -> None:
    table = Table("tensor", "stored as", box=None, pad_edge=False)
    for name in ("differing", "scales"):
        table.add_column(name, justify="right")
    table.add_column("first")
    for check in failing[:LISTED]:
        first = printable(check.problem) if check.problem else str(list(check.first or ()))
        table.add_row(
            printable(check.role), check.stored, f"{check.differing} of {check.size}", str(check.scales), first
        )
    console.print(table)
    if len(failing) > LISTED:
        console.print(f"... and {len(failing) - LISTED} more")
