"""`bitnet-onnx inspect`."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from bitnet_onnx.cli._console import printable, size
from bitnet_onnx.cli._package import package_path
from bitnet_onnx.inspection import Inspection, inspect


@click.command()
@click.argument("path", type=package_path)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option("--layers", is_flag=True, help="List every matrix.")
def command(path: Path, as_json: bool, layers: bool) -> None:
    """Describe PATH, a checkpoint or a package: family, sizes, precision, files, and what can read it."""
    found = inspect(path)
    if as_json:
        click.echo(json.dumps(found.as_dict(layers=layers), indent=2))
        return
    console = Console(highlight=False, markup=False, emoji=False)
    _overview(console, found)
    if layers:
        _layers(console, found)


def _overview(console: Console, found: Inspection) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(found.kind, printable(found.path))
    table.add_row("family", printable(found.family))
    table.add_row("source", printable(found.source))
    if found.operators is not None:
        table.add_row("operators", found.operators)
    for name, value in found.sizes.items():
        table.add_row(name, printable(str(value)))
    table.add_row("parameters", f"{found.parameters / 1e6:.1f} M in matrices")
    table.add_row("bits per weight", f"{found.bits_per_weight:.2f}")
    for name, count in found.precisions().items():
        table.add_row("", f"{printable(name)}: {count / 1e6:.1f} M weights")
    for name, count in found.files.items():
        table.add_row("file", f"{printable(name)}  {size(count)}")
    for reader in found.readers:
        table.add_row("readable by", reader)
    if found.problem:
        table.add_row("not convertible", printable(found.problem))
    console.print(table)


def _layers(console: Console, found: Inspection) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("layer", "shape", "stored as"):
        table.add_column(name, overflow="fold")
    for name in ("bits", "weight error"):
        table.add_column(name, justify="right")
    for layer in found.layers:
        error = "" if layer.relative_error is None else f"{100 * layer.relative_error:.2f} %"
        shape = " x ".join(map(str, layer.shape))
        table.add_row(printable(layer.role), shape, printable(layer.stored), f"{layer.bits_per_weight:.2f}", error)
    console.print(table)
