"""`bitnet-onnx validate` of a Core ML package."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.table import Table

from bitnet_onnx import model_zoo
from bitnet_onnx.cli._console import error_console, printable
from bitnet_onnx.cli._validation import LISTED, print_weights, progress_bar
from bitnet_onnx.evaluation.mil import Options, Verification, verify

_DOES_NOT_HOLD: Final = 1


@dataclass(frozen=True, slots=True)
class CoreMLChecks:
    """The options of the command."""

    tokens: tuple[int, ...]
    prompt: str | None
    layers: tuple[int, ...] | None
    float16: bool
    i2s_layout: str | None


def validate_coreml(package: Path, source: str | None, checks: CoreMLChecks, as_json: bool) -> int:
    """Look at a package, print what was found, and give the exit status."""
    options = Options(
        tokens=checks.tokens,
        prompt=checks.prompt,
        layers=checks.layers,
        float16=checks.float16,
        i2s_layout=checks.i2s_layout,
    )
    with progress_bar() as progress:
        found = verify(package, None if source is None else model_zoo.resolve(source), options, progress=progress)
    for warning in found.warnings:
        error_console().print(f"[yellow]warning:[/] {printable(warning)}", soft_wrap=True)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2))
    else:
        _print(found)
    return 0 if found.holds else _DOES_NOT_HOLD


def _print(found: Verification) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    if found.source:
        print_weights(console, found.weights)
        if found.logits:
            _logits(console, found)
        else:
            console.print("logits: not compared, because of the weights")
    for trial in found.trials:
        outputs = ", ".join(f"{printable(name)} {list(shape)}" for name, shape in trial.outputs.items())
        console.print(
            f"function {printable(trial.function)}: {trial.operations} operations ran: {outputs}", soft_wrap=True
        )
    for overflow in found.overflows[:LISTED]:
        console.print(f"{overflow.mode}: {printable(overflow.text)}", soft_wrap=True)
    if len(found.overflows) > LISTED:
        console.print(f"... and {len(found.overflows) - LISTED} more")
    if found.float16 or found.overflows:
        console.print(f"operations that overflow or give no numbers: {len(found.overflows)}")
    whole = "the package" if found.source else "the program"
    verb = ("holds" if found.source else "runs") if found.holds else "DOES NOT hold"
    console.print(f"{whole} {verb}", style="bold")


def _logits(console: Console, found: Verification) -> None:
    table = Table("tokens", "read", box=None, pad_edge=False)
    for name in ("logits' error", "tolerance", "holds"):
        table.add_column(name, justify="right", no_wrap=True)
    for check in found.logits:
        tolerance = "" if check.tolerance is None else f"{100 * check.tolerance:.2g} %"
        holds = "" if check.tolerance is None else "yes" if check.holds else "NO"
        table.add_row(str(check.tokens), str(check.way), f"{100 * check.error:.2g} %", tolerance, holds)
    console.print(table)
    if found.layers:
        _layers(console, found)


def _layers(console: Console, found: Verification) -> None:
    failing = [check for check in found.layers if not check.holds]
    worst = max(found.layers, key=lambda check: check.error / check.tolerance)
    console.print(
        f"layers: {len(found.layers) - len(failing)} of {len(found.layers)} give the reference's output, layer "
        f"{worst.layer} within {100 * worst.error:.2g} % of {100 * worst.tolerance:.2g} %"
    )
    for check in failing[:LISTED]:
        console.print(f"  layer {check.layer}: {100 * check.error:.2g} %, tolerance {100 * check.tolerance:.2g} %")
