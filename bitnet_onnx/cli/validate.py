"""`bitnet-onnx validate`."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from bitnet_onnx import model_zoo
from bitnet_onnx.cli._console import error_console, printable
from bitnet_onnx.cli._package import package_path
from bitnet_onnx.cli._validation import LISTED, print_weights, progress_bar
from bitnet_onnx.cli._validation_coreml import CoreMLChecks, validate_coreml
from bitnet_onnx.evaluation import Measure, Options, Validation, validate
from bitnet_onnx.evaluation.mil._bundle import is_bundle

_DOES_NOT_HOLD = 1
_ALL = "all"


def _layer_numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Numbers with commas between them, or an empty tuple for `all`."""
    if value is None:
        return None
    return () if value == _ALL else _integers(ctx, param, value)


def _integers(_: click.Context, __: click.Parameter, value: str) -> tuple[int, ...]:
    """Numbers with commas between them."""
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r:.60}: expected numbers with commas between them") from None


@click.command()
@click.argument("package", type=package_path)
@click.option(
    "--source",
    help="The checkpoint that the package was made from, or its name in the zoo. Without it an .mlpackage is only run.",
)
@click.option(
    "--tokens",
    callback=_integers,
    metavar="N,N...",
    default="1,7,64",
    show_default=True,
    help="Lengths of the prompts that are made up.",
)
@click.option("--prompt", help="A text to read instead.")
@click.option(
    "--layers",
    callback=_layer_numbers,
    metavar="N,N...",
    is_flag=False,
    flag_value=_ALL,
    help="Compare hidden states after these layers too, such as 0,15,29; without a value after all, as of an "
    ".mlpackage in any case.",
)
@click.option("--float16", is_flag=True, help="Of an .mlpackage: look for values that half precision does not hold.")
@click.option("--fallback", is_flag=True, help="Run the function bodies although the operator library is there.")
@click.option(
    "--i2s-layout",
    type=click.Choice(["x86"]),
    help="How the I2_S matrices of a GGUF file are laid out, as for `convert`.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.pass_context
def command(
    ctx: click.Context,
    package: Path,
    source: str | None,
    tokens: tuple[int, ...],
    prompt: str | None,
    layers: tuple[int, ...] | None,
    float16: bool,
    fallback: bool,
    i2s_layout: str | None,
    as_json: bool,
) -> None:
    """Compare PACKAGE with the checkpoint that it was made from.

    Every tensor must be equal bit for bit to what the recorded precision makes of the source's, with its inputs scaled
    as the package says, and logits must be those of an independent forward pass in numpy. Exit status: 0 it holds, 1 it
    does not, 2 bad input.

    An .mlpackage is run in numpy, operation by operation: its logits must be within 1 % of the reference's, and every
    layer within 0.1 % of what the reference gives on the same input.
    """
    if is_bundle(package):
        if fallback:
            raise click.UsageError("--fallback is for ONNX packages")
        ctx.exit(validate_coreml(package, source, CoreMLChecks(tokens, prompt, layers, float16, i2s_layout), as_json))
    if source is None or float16:
        raise click.UsageError("Missing option '--source'." if source is None else "--float16 is for an .mlpackage")
    options = Options(tokens=tokens, prompt=prompt, layers=layers, fallback=fallback, i2s_layout=i2s_layout)
    with progress_bar() as progress:
        found = validate(package, model_zoo.resolve(source), options, progress=progress)
    for warning in found.warnings:
        error_console().print(f"[yellow]warning:[/] {printable(warning)}", soft_wrap=True)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2))
    else:
        _print(found, made_up=prompt is None)
    ctx.exit(0 if found.holds else _DOES_NOT_HOLD)


def _print(found: Validation, *, made_up: bool) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    print_weights(console, found.weights)
    if found.logits:
        _logits(console, found, made_up)
    else:
        console.print("logits: not compared, because of the weights")
    if found.operators:
        _operators(console, found)
    if found.layers:
        _layers(console, found)
    console.print("the package holds" if found.holds else "the package DOES NOT hold", style="bold")


def _logits(console: Console, found: Validation, made_up: bool) -> None:
    console.print(f"logits: {found.runtime} against the numpy reference")
    table = Table("tokens", "read", box=None, pad_edge=False)
    for name in ("distance", "tolerance", "holds", "KL to source", "top-1"):
        table.add_column(name, justify="right", no_wrap=True)
    for check in found.logits:
        unit = " %" if check.measure is Measure.RELATIVE else ""
        value, tolerance = ((100 * part if unit else part) for part in (check.value, check.tolerance))
        table.add_row(
            str(check.tokens),
            str(check.way),
            f"{value:.2g}{unit}",
            f"{tolerance:.2g}{unit}",
            "yes" if check.holds else "NO",
            f"{check.divergence:.4f}",
            f"{100 * check.agreement:.0f} %",
        )
    console.print(table)
    if made_up:
        console.print("KL and top-1 are on made-up tokens: --prompt TEXT shows what quantization costs on a text")


def _operators(console: Console, found: Validation) -> None:
    failing = [check for check in found.operators if not check.holds]
    total = len(found.operators)
    console.print(f"operators: {total - len(failing)} of {total} linear layers give the numpy operator's bits")
    for check in failing[:LISTED]:
        problem = check.problem or f"{check.differing} of {check.size} values differ"
        console.print(f"  {printable(check.node)}: {problem}", soft_wrap=True)


def _layers(console: Console, found: Validation) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("after layer", "error", "noise alone", "error with floats"):
        table.add_column(name, justify="right")
    for check in found.layers:
        floats = "" if check.floats is None else f"{check.floats:.1e}"
        table.add_row(str(check.layer), f"{check.error:.1e}", f"{check.movement:.1e}", floats)
    console.print(table)
