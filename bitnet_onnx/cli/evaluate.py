"""`bitnet-onnx evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.table import Table

from bitnet_onnx.api import evaluate
from bitnet_onnx.cli._console import printable
from bitnet_onnx.cli._package import package_path
from bitnet_onnx.cli._progress import progress_bar
from bitnet_onnx.cli._running import activations_option
from bitnet_onnx.evaluation.quality import (
    Quality,
    QualityOptions,
    Share,
    TaskQuality,
    TextQuality,
    WindowRule,
)

#: Perplexities from here on are told by three digits.
_LARGE: Final = 1000


@click.command()
@click.argument("package", type=package_path)
@click.option(
    "--text", "texts", type=click.Path(path_type=Path), multiple=True, help="UTF-8 text to score; repeatable."
)
@click.option(
    "--tasks",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE.jsonl",
    help="Multiple-choice questions, a JSON object a line, such as "
    '{"query": "...", "choices": ["...", "..."], "gold": 0}; repeatable.',
)
@click.option(
    "--reference",
    help="A package, a checkpoint or a name in the zoo to compare with; a checkpoint is converted to float32 in a "
    "temporary directory.",
)
@click.option("--tokens", type=int, help="Windows of so many tokens of each text, spread evenly.  [default: the text]")
@click.option("--window", type=int, default=256, show_default=True, help="Tokens of a window.")
@click.option("--stride", type=int, help="Tokens from one window to the next.  [default: the window]")
@click.option("--context", type=int, help="Tokens at the head of each window that are not scored.  [default: 1]")
@click.option("--bos", is_flag=True, help="Put the model's beginning token before each window.")
@activations_option
@click.option("--threads", type=click.IntRange(min=1), help="Threads of one operator.  [default: physical cores]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def command(
    package: Path,
    texts: tuple[Path, ...],
    tasks: tuple[Path, ...],
    reference: str | None,
    tokens: int | None,
    window: int,
    stride: int | None,
    context: int | None,
    bos: bool,
    activation_bits: int | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure how good PACKAGE is: perplexity and bits per byte of texts, distance from a reference, questions.

    Windows are read one after the other without a beginning token; the first token of each is not scored.
    """
    rule = WindowRule(window, tokens=tokens, stride=stride, context=context, beginning=bos)
    with progress_bar() as progress:
        found = evaluate(
            package,
            texts=texts,
            tasks=tasks,
            reference=reference,
            options=QualityOptions(rule, activation_bits=activation_bits, threads=threads),
            progress=progress,
        )
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2))
    else:
        _print(found)


def _print(found: Quality) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    if found.rule is not None and found.total is not None:
        console.print(found.rule.describe(), soft_wrap=True)
        console.print(_texts(found, found.total))
        if found.reference is not None:
            made = f" (converted for this: {found.reference.converted})" if found.reference.converted else ""
            console.print(f"against {printable(found.reference.path)}{made}", soft_wrap=True)
            console.print(_comparisons(found, found.total))
    for task in found.tasks:
        console.print(_task(task))


def _texts(found: Quality, total: TextQuality) -> Table:
    table = Table("text", box=None, pad_edge=False)
    for name in ("tokens scored", "perplexity", "bits a byte"):
        table.add_column(name, justify="right", no_wrap=True)
    for text in _rows(found, total):
        perplexity = _number(text.perplexity) + _error(text.perplexity, text.nats_error)
        table.add_row(_name(text), str(text.tokens), perplexity, f"{text.bits_per_byte:.4f}")
    return table


def _comparisons(found: Quality, total: TextQuality) -> Table:
    table = Table("text", box=None, pad_edge=False)
    for name in ("perplexity", "ratio", "KL", "KL of 99 %", "top-1"):
        table.add_column(name, justify="right", no_wrap=True)
    for text in _rows(found, total):
        if (other := text.comparison) is not None:
            table.add_row(
                _name(text),
                _number(other.perplexity),
                f"{other.perplexity_ratio:.4g}" + _error(other.perplexity_ratio, other.difference_error),
                f"{other.divergence:.4f}",
                f"{other.divergence_p99:.3f}",
                f"{100 * other.agreement:.1f} %",
            )
    return table


def _rows(found: Quality, total: TextQuality) -> list[TextQuality]:
    return [*found.texts, *([total] if len(found.texts) > 1 else [])]


def _name(text: TextQuality) -> str:
    return printable(Path(text.name).name)


def _number(perplexity: float) -> str:
    return f"{perplexity:.3f}" if perplexity < _LARGE else f"{perplexity:.3g}"


def _error(value: float, relative: float | None) -> str:
    """A standard error: that of a logarithm is relative."""
    return "" if relative is None else f" ± {value * relative:.2g}"


def _task(task: TaskQuality) -> Table:
    table = Table("questions", box=None, pad_edge=False)
    for name in ("number", "accuracy", "by the byte"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row(
        printable(Path(task.name).name), str(task.questions), _share(task.accuracy), _share(task.accuracy_normalized)
    )
    if task.reference_accuracy is not None and task.reference_accuracy_normalized is not None:
        table.add_row("reference", "", _share(task.reference_accuracy), _share(task.reference_accuracy_normalized))
    return table


def _share(share: Share) -> str:
    return f"{100 * share.value:.1f} % ({100 * share.low:.1f} to {100 * share.high:.1f})"
