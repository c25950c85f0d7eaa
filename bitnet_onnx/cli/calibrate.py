"""`bitnet-onnx calibrate`."""

from __future__ import annotations

import time
from pathlib import Path

import click
from rich.console import Console

from bitnet_onnx.api import calibrate
from bitnet_onnx.calibration import CollectOptions, ModelStatistics, Sampling
from bitnet_onnx.cli._console import printable, size
from bitnet_onnx.cli._progress import progress_bar


@click.command()
@click.argument("source")
@click.option(
    "--text",
    "texts",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="A UTF-8 text such as the model will read; may be given several times.",
)
@click.option("--output", "-o", type=click.Path(path_type=Path), required=True, help="The file of statistics to write.")
@click.option("--tokens", type=int, default=32768, show_default=True, help="Tokens that are read in all.")
@click.option("--window", type=int, default=256, show_default=True, help="Tokens of one window.")
@click.option(
    "--sampling",
    type=click.Choice([str(name) for name in Sampling]),
    default="stratified",
    show_default=True,
    help="Where windows begin. stratified: one in each of equal parts of the texts. uniform: anywhere.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the places of the windows.")
@click.option(
    "--block",
    type=int,
    help="Features of one block of second moments at most.  [default: as large as fits 1 GiB]",
)
@click.option(
    "--sensitivity",
    is_flag=True,
    help="Measure too what each precision of each layer does to the output: `convert --bits` and `--max-loss` need it. "
    "Takes some minutes for each 100M parameters.",
)
@click.option(
    "--sensitivity-tokens",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="Tokens that are read for each of these measurements.",
)
def command(
    source: str,
    texts: tuple[Path, ...],
    output: Path,
    tokens: int,
    window: int,
    sampling: str,
    seed: int,
    block: int | None,
    sensitivity: bool,
    sensitivity_tokens: int,
) -> None:
    """Read texts with the float model of SOURCE, and keep what its linear layers see.

    SOURCE is a checkpoint, a package, or a name of `bitnet-onnx zoo list`. What is written serves `bitnet-onnx convert
    --calibration`, which then makes a better model of the same size. Interrupted, it goes on where it was.
    """
    started = time.perf_counter()
    options = CollectOptions(tokens, window, Sampling(sampling), seed, block=block)
    with progress_bar() as report:
        statistics = calibrate(
            source,
            texts,
            output,
            options,
            sensitivity_tokens=sensitivity_tokens if sensitivity else None,
            progress=report,
        )
    _show(statistics, output, time.perf_counter() - started)


def _show(statistics: ModelStatistics, output: Path, seconds: float) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(printable(str(output)), style="bold", soft_wrap=True)
    tokens = max(one.tokens for one in statistics.inputs.values())
    blocks = [len(block) for one in statistics.inputs.values() for block in one.moment]
    console.print(
        f"  {len(statistics.inputs)} inputs of {len(statistics.roles)} matrices over {tokens} tokens, second moments "
        f"in blocks of up to {max(blocks)}; {size(output.stat().st_size)} in {seconds:.1f} s",
        soft_wrap=True,
    )
    if statistics.sensitivity:
        measured = sum(choice.measured for unit in statistics.sensitivity for choice in unit.choices)
        console.print(
            f"  sensitivity of {len(statistics.sensitivity)} units: {measured} precisions measured, the finer ones "
            f"scaled from them",
            soft_wrap=True,
        )
