"""`bitnet-onnx zoo`."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from bitnet_onnx import model_zoo
from bitnet_onnx.cli._console import error_console, size

#: The table fits a terminal of 100 columns; `--json` has the whole text.
_LICENCE_WIDTH = 20


@click.group()
def command() -> None:
    """List and fetch models known by name."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON list on stdout.")
def list_command(as_json: bool) -> None:
    """List the models of the zoo."""
    if as_json:
        click.echo(json.dumps([_facts(manifest) for manifest in model_zoo.list_models()], indent=2))
        return
    table = Table(box=None, pad_edge=False)
    # Names are what `pull` wants: a narrow terminal may cut anything else.
    table.add_column("name", min_width=max(len(manifest.name) for manifest in model_zoo.list_models()))
    for name in ("family", "size", "weights", "download", "verified", "licence"):
        table.add_column(name, no_wrap=True)
    for manifest in model_zoo.list_models():
        download = "unknown" if manifest.download_bytes is None else size(manifest.download_bytes)
        table.add_row(
            manifest.name,
            manifest.family,
            "unknown" if manifest.parameters is None else f"{manifest.parameters / 1e6:.0f} M",
            manifest.tensor_form,
            download,
            "sha256" if manifest.verified else "not here",
            textwrap.shorten(manifest.licence, _LICENCE_WIDTH, placeholder="…"),
        )
    Console(highlight=False).print(table)


@command.command("pull")
@click.argument("name")
def pull_command(name: str) -> None:
    """Fetch the model NAME into the cache, verify it, and print its path."""
    with _progress() as progress:
        click.echo(model_zoo.pull(name, progress=progress))


def _facts(manifest: model_zoo.Manifest) -> dict[str, object]:
    return {
        "name": manifest.name,
        "summary": manifest.summary,
        "family": manifest.family,
        "licence": manifest.licence,
        "weights": str(manifest.tensor_form),
        "origin": manifest.origin,
        "parameters": manifest.parameters,
        "download_bytes": manifest.download_bytes,
        "verified": manifest.verified,
    }


@contextmanager
def _progress() -> Iterator[model_zoo.Progress | None]:
    if not error_console().is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bar(*columns, console=error_console(), transient=True) as bar:
        tasks = {stage: bar.add_task(stage, total=None, visible=False) for stage in ("download", "verify", "extract")}

        def report(stage: str, done: int, total: int) -> None:
            bar.update(tasks[stage], completed=done, total=total, visible=True)

        yield report
