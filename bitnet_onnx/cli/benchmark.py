"""`bitnet-onnx benchmark`."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from bitnet_onnx.benchmarks import kernel, model, shape, tables
from bitnet_onnx.benchmarks._graphs import Shape
from bitnet_onnx.benchmarks.results import Report
from bitnet_onnx.cli._console import error_console, printable
from bitnet_onnx.cli._package import package_path
from bitnet_onnx.errors import InputError
from bitnet_onnx.model_zoo._cache import cache_root

_Command = TypeVar("_Command", bound=Callable[..., Any])
_SHAPE_LIMIT = 1 << 20
#: Where every measurement is made of the least that shows whether it works.
_QUICK_MODEL = model.ModelSettings(prefill_tokens=8, decode_tokens=2, context=32, rounds=2, starts=1)


@click.group()
def command() -> None:
    """Measure speed and memory against ONNX Runtime's own operators and llama.cpp, interleaved in one run."""


def _common(function: _Command) -> _Command:
    """Options of every benchmark."""
    for option in (
        click.option("--quick", is_flag=True, help="See whether it works: few rounds, little work, no use as figures."),
        click.option("--plot", "plot", type=click.Path(path_type=Path), help="Draw the ratios into this PNG."),
        click.option("--out", type=click.Path(path_type=Path), help="Write everything into this JSON file."),
        click.option("--rounds", type=click.IntRange(min=1), help="Interleaved rounds."),
        click.option(
            "--threads",
            type=click.IntRange(min=1, max=1024),
            multiple=True,
            help="Threads of each candidate; repeatable.  [default: 1, and all cores]",
        ),
    ):
        function = option(function)
    return function


def _peers(function: _Command) -> _Command:
    """Options of the benchmarks of whole models."""
    return click.option(
        "--llama-python",
        metavar="PYTHON",
        default=sys.executable,
        help="Interpreter that has llama-cpp-python.  [default: this one]",
    )(function)


@command.command("kernel")
@click.option("--shape", "shapes", multiple=True, metavar="NxK", help="A layer of the body; repeatable.")
@click.option("--layers", type=click.IntRange(min=1, max=1000), help="Blocks of the body.  [default: 30]")
@click.option("--no-head", is_flag=True, help="Leave out the vocabulary head.")
@_common
def kernel_command(
    shapes: tuple[str, ...],
    layers: int | None,
    no_head: bool,
    threads: tuple[int, ...],
    rounds: int | None,
    out: Path | None,
    plot: Path | None,
    quick: bool,
) -> None:
    """The operator by itself, in the layer shapes of BitNet 2B4T unless others are given."""
    settings = kernel.KernelSettings(threads=threads)
    settings = settings.quick() if quick else settings
    settings = replace(
        settings,
        body=tuple(_parse_shape(text) for text in shapes) or settings.body,
        layers=layers or settings.layers,
        head=None if no_head else settings.head,
        rounds=rounds or settings.rounds,
    )
    _deliver(lambda: kernel.measure(settings, _progress), out, plot)


@command.command("model")
@click.argument("package", type=package_path)
@click.option("--gguf", type=click.Path(path_type=Path, exists=True), help="A peer for llama.cpp to run.")
@click.option("--stock/--no-stock", default=True, help="The package without the operator library, as a peer.")
@_peers
@_common
def model_command(
    package: Path,
    gguf: Path | None,
    stock: bool,
    llama_python: str,
    threads: tuple[int, ...],
    rounds: int | None,
    out: Path | None,
    plot: Path | None,
    quick: bool,
) -> None:
    """PACKAGE as a whole: start, prefill, decode, memory, size."""
    settings = _model_settings(quick, threads, rounds, llama_python, stock)
    name = "llama.cpp" if gguf is None else f"llama.cpp {printable(gguf.name)}"
    settings = replace(settings, gguf=gguf, gguf_name=name)
    _deliver(lambda: model.measure(package, settings, _progress), out, plot)


@command.command("shape")
@click.argument("name", type=click.Choice(list(shape.SHAPES)))
@click.option("--cache", type=click.Path(path_type=Path), help="Folder that keeps the made models.")
@click.option("--rebuild", is_flag=True, help="Make the models again.")
@click.option("--stock/--no-stock", default=False, help="The package without the operator library, as a peer.")
@_peers
@_common
def shape_command(
    name: str,
    cache: Path | None,
    rebuild: bool,
    stock: bool,
    llama_python: str,
    threads: tuple[int, ...],
    rounds: int | None,
    out: Path | None,
    plot: Path | None,
    quick: bool,
) -> None:
    """A model of the shape NAME with random ternary weights, against llama.cpp with TQ2_0 where that is installed."""
    settings = _model_settings(quick, threads, rounds, llama_python, stock)
    folder = cache_root() / "benchmarks" if cache is None else cache
    _deliver(lambda: shape.measure(name, folder, settings, rebuild=rebuild, progress=_progress), out, plot)


def _model_settings(
    quick: bool, threads: tuple[int, ...], rounds: int | None, llama_python: str, stock: bool
) -> model.ModelSettings:
    settings = _QUICK_MODEL if quick else model.ModelSettings()
    return replace(settings, threads=threads, rounds=rounds or settings.rounds, llama_python=llama_python, stock=stock)


def _deliver(measure: Callable[[], Report], out: Path | None, plot: Path | None) -> None:
    """Measure, print the table, write the files. What could spoil the plot is found out first."""
    if plot is not None:
        tables.check_plot(plot)
    report = measure()
    if out is not None:
        report.write(out)
    # A pipe has no width of its own, and a folded table serves nobody.
    tables.show(report, Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 140))
    if plot is not None:
        tables.plot(report, plot)


def _parse_shape(text: str) -> Shape:
    found = re.fullmatch(r"(\d{1,7})x(\d{1,7})", text)
    if found is None or not all(1 <= int(size) <= _SHAPE_LIMIT for size in found.groups()):
        raise InputError(f"--shape is {text!r:.40}: expected outputs x inputs, such as 2560x6912, each up to 2^20")
    return Shape(int(found[1]), int(found[2]))


def _progress(step: str) -> None:
    if error_console().is_terminal:
        error_console().print(f"[dim]{printable(step)}[/]", highlight=False)
