"""`bitnet-onnx train`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import click

from bitnet_onnx.cli._console import error_console, printable
from bitnet_onnx.cli._progress import progress_bar
from bitnet_onnx.errors import InputError
from bitnet_onnx.training.config_checks import check_settings
from bitnet_onnx.training.config_file import read_config
from bitnet_onnx.training.example import EXAMPLE
from bitnet_onnx.training.parallel import ToldElsewhereError
from bitnet_onnx.training.records import End
from bitnet_onnx.training.result import TrainingResult
from bitnet_onnx.training.run_directory import Begin
from bitnet_onnx.training.settings import TrainingSettings
from bitnet_onnx.training.trainer import check_run, train


@click.command()
@click.argument("config", type=click.Path(path_type=Path), required=False, metavar="[CONFIG.toml]")
@click.option(
    "--prepare",
    is_flag=True,
    help="Make the environment of onnxruntime-training in the cache, if it is not there. Needs no CONFIG.",
)
@click.option("--example", is_flag=True, help="Print a CONFIG.toml to begin with, and do nothing else.")
@click.option("--check", is_flag=True, help="Read everything, state memory and plan; write nothing.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint, and refuse where there is none.")
@click.option("--fresh", is_flag=True, help="Begin anew; the checkpoints of the run before are removed.")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Directory of the run, in place of the file's.")
@click.option("--seed", type=click.IntRange(0, (1 << 63) - 1), help="In place of the file's.")
@click.option("--steps", type=click.IntRange(min=1), help="In place of the file's.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def command(
    config: Path | None,
    prepare: bool,
    example: bool,
    check: bool,
    resume: bool,
    fresh: bool,
    output: Path | None,
    seed: int | None,
    steps: int | None,
    as_json: bool,
) -> int:
    """Train the model that CONFIG.toml describes, quantized as it will be converted.

    It begins, or goes on from the last checkpoint in the run's directory; Ctrl-C saves one and ends. The trained model
    is OUTPUT/model, for `bitnet-onnx convert`. docs/training.md has all settings.
    """
    if resume and fresh:
        raise click.UsageError("--resume and --fresh contradict each other")
    if example:
        click.echo(EXAMPLE, nl=False)
        return 0
    if prepare:
        _prepare()
        if config is None:
            return 0
    if config is None:
        raise click.UsageError("missing argument 'CONFIG.toml'")
    settings = _overridden(read_config(config), output, seed, steps)
    if check:
        _show_check(settings, as_json)
        return 0
    begin = Begin.RESUME if resume else Begin.FRESH if fresh else Begin.AUTO
    try:
        result = train(settings, begin=begin, console=error_console())
    except ToldElsewhereError:
        return 1
    if result is None:  # another process of the run speaks
        return 0
    click.echo(json.dumps(result.as_dict()) if as_json else _text(result))
    return 0 if result.signal is None else 128 + result.signal


def _prepare() -> None:
    from bitnet_onnx.training.engines.environment import prepare

    with progress_bar() as report:
        python = prepare(report)
    error_console().print(f"onnxruntime-training is ready: {printable(str(python))}", highlight=False, soft_wrap=True)


def _overridden(
    settings: TrainingSettings, output: Path | None, seed: int | None, steps: int | None
) -> TrainingSettings:
    """The settings with what the command line says; checked again, as they may contradict each other now."""
    if output is not None:
        settings = replace(settings, output=output)
    if seed is not None:
        settings = replace(settings, seed=seed)
    if steps is not None:
        settings = replace(settings, loop=replace(settings.loop, steps=steps))
    check_settings(settings, InputError)
    return settings


def _show_check(settings: TrainingSettings, as_json: bool) -> None:
    with check_run(settings) as prepared:
        if not as_json:
            click.echo("\n".join(printable(line) for line in prepared.describe()))
            return
        plan = prepared.plan
        fields = {
            "model": prepared.start.name,
            "weights": sum(math.prod(shape) for shape in prepared.graph.parameters.values()),
            "ternary": sum(math.prod(prepared.graph.parameters[name]) for name in prepared.ternary),
            "engine": str(prepared.engine.name),
            "micro_batch": plan.micro_batch,
            "recompute": plan.recompute,
            "memory": {**asdict(plan.estimate), "total": plan.estimate.total},
        }
        click.echo(json.dumps(fields))


def _text(result: TrainingResult) -> str:
    place = f"step {result.step} of {result.steps}"
    if result.end is End.STOPPED:
        return f"{place}: saved; the same command goes on from there"
    early = ", where evaluations had got no better" if result.end is End.EARLY else ""
    perplexity = result.perplexity
    found = "" if perplexity is None else f"; perplexity {perplexity:.4g} at step {result.loss_step}"
    return f"{place}{early}{found}\n{printable(str(result.model))}"
