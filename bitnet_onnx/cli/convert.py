"""`bitnet-onnx convert`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click
from click.core import ParameterSource
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Column

from bitnet_onnx.api import convert, convert_coreml, export
from bitnet_onnx.cli._console import error_console
from bitnet_onnx.cli._conversion_report import report_conversion, report_export
from bitnet_onnx.cli._precision import PrecisionOptions, plan
from bitnet_onnx.converters import (
    CoreMLOptions,
    DeploymentTarget,
    FloatType,
    GgufOptions,
    GgufTernary,
    Layout,
    SafetensorsOptions,
    Target,
    TernaryStorage,
)
from bitnet_onnx.converters.onnx._linears import LayerRecord
from bitnet_onnx.package_format import Operators
from bitnet_onnx.policy import Weights
from bitnet_onnx.quantization.method import MethodName

#: Columns of the terminal for `layers.100.mlp.gate_proj`, so that the bar does not jump; all fit into 80.
_NAME_WIDTH: Final = 24
_COREML: Final = "coreml"
#: Targets whose matrices get the precisions that are asked for.
_QUANTIZED: Final = ("onnx", _COREML)
#: Options that only some targets have.
_TARGETS = {
    "weights": _QUANTIZED,
    "group_size": _QUANTIZED,
    "head": _QUANTIZED,
    "calibration": _QUANTIZED,
    "no_scaling": _QUANTIZED,
    "method": _QUANTIZED,
    "bits": _QUANTIZED,
    "max_loss": _QUANTIZED,
    "policy": _QUANTIZED,
    "fallback": ("onnx",),
    "operator": ("onnx",),
    "context": (*_QUANTIZED, "gguf"),
    "deployment": (_COREML,),
    "coreml_weights": (_COREML,),
    "split": (_COREML,),
    "layout": ("safetensors",),
    "dtype": ("safetensors", "gguf"),
    "ternary": ("gguf",),
    "no_tokenizer": ("gguf",),
}


@click.command()
@click.argument("source")
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "target",
    type=click.Choice([*_QUANTIZED, *map(str, Target)]),
    default="onnx",
    show_default=True,
    help="onnx: our package. coreml: an .mlpackage for Apple's systems, its tokenizer in a directory beside it. "
    "safetensors: a Hugging Face directory. gguf: a file for llama.cpp and its like. The last two keep the codes of "
    "ternary matrices, and say what else they had to round.",
)
@click.option(
    "--weights",
    type=click.Choice([str(name) for name in Weights]),
    default="auto",
    show_default=True,
    help="Precision of the blocks. auto: ternary matrices stay ternary without loss, others become int4, those of "
    "a model trained to be ternary become ternary. "
    "keep: the same, but others stay float32. ternary: absmean, for models trained for it.",
)
@click.option(
    "--group-size",
    type=click.IntRange(min=0),
    help="Weights of a row that share a scale, a multiple of 32; 0 for the whole row.  [default: 32; int8: 0]",
)
@click.option(
    "--head",
    type=click.Choice(["auto", "keep", "int8", "int6", "int4", "float32"]),
    default="auto",
    show_default=True,
    help="Precision of the vocabulary head and the embedding. auto: ternary ones stay ternary without loss, others "
    "become int8. keep: the same, but others stay float32.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="STATS",
    help="What `bitnet-onnx calibrate` wrote for this model: codes are then chosen for the least error of the output.",
)
@click.option(
    "--no-scaling",
    is_flag=True,
    help="With --calibration: leave inputs of layers as they are, where scales would make them easier to round.",
)
@click.option(
    "--method",
    type=click.Choice([str(name) for name in MethodName]),
    default="auto",
    show_default=True,
    help="How floats of the blocks become codes. auto: gptq for integers with --calibration, plain rounding without; "
    "absmean for ternary.",
)
@click.option(
    "--bits",
    type=click.FloatRange(min=0, min_open=True),
    help="The most bits a weight may take in the mean, head and embedding included: the precision of each layer is "
    "chosen by its sensitivity.",
)
@click.option(
    "--max-loss",
    type=click.FloatRange(min=0),
    help="The same by the loss that is allowed: the Kullback-Leibler divergence from the float model, in nats a token.",
)
@click.option(
    "--policy",
    type=click.Path(path_type=Path),
    help="A TOML file with the precision of each layer, such as the policy.toml of a package.",
)
@click.option(
    "--fallback",
    type=click.Choice(["fast", "exact"]),
    default="fast",
    show_default=True,
    help="What runtimes without the operator library execute: fast is within 2 %, exact is equal up to float "
    "rounding and slower.",
)
@click.option(
    "--operator",
    type=click.Choice([str(name) for name in Operators]),
    default="bitnet",
    show_default=True,
    help="What the graph is written in. bitnet: our operators, with function bodies for runtimes without the library. "
    "stock: those of ONNX Runtime, for programs that load no library. standard: those of the ONNX standard alone.",
)
@click.option(
    "--context",
    type=click.IntRange(min=1),
    help="Positions that the package has room for.  [default: what the checkpoint names; coreml: at most 2048 of them]",
)
@click.option(
    "--target",
    "deployment",
    type=click.Choice([str(name) for name in DeploymentTarget], case_sensitive=False),
    default="iOS18",
    show_default=True,
    help="--to coreml: the oldest system that opens the package; iOS18 is macOS 15 too, iOS26 macOS 26.",
)
@click.option(
    "--coreml-weights",
    type=click.Choice([str(name) for name in TernaryStorage]),
    default="lut",
    show_default=True,
    help="--to coreml: ternary matrices as 2-bit indices of a table, or as a bit for each weight that tells zeros and "
    "one for the sign of the others, which is smaller.",
)
@click.option(
    "--split",
    is_flag=True,
    help="--to coreml: two functions on the same weights, prefill for many tokens and decode for one.",
)
@click.option(
    "--i2s-layout",
    type=click.Choice(["x86"]),
    help="Byte layout of I2_S matrices in a GGUF of bitnet.cpp, which the file does not tell: x86 is blocks of 128.",
)
@click.option(
    "--format",
    "layout",
    type=click.Choice([str(name) for name in Layout]),
    default="auto",
    show_default=True,
    help="--to safetensors: packed stores ternary matrices of one scale in 2 bits, as transformers' bitnet "
    "quantization reads them; dense stores floats; auto is packed where every matrix of the blocks can be.",
)
@click.option(
    "--dtype",
    type=click.Choice([str(name) for name in FloatType]),
    help="--to safetensors, gguf: type of what is not ternary.  [default: float32; gguf: float16]",
)
@click.option(
    "--ternary",
    type=click.Choice([str(name) for name in GgufTernary]),
    default="tq2_0",
    show_default=True,
    help="--to gguf: type of ternary matrices; those whose rows are not whole blocks of 256 become q4_0, with the "
    "same codes.",
)
@click.option(
    "--no-tokenizer",
    is_flag=True,
    help="--to gguf: write no tokenizer, for one that GGUF has no word for; readers of the file then take token ids.",
)
@click.option("--overwrite", is_flag=True, help="Replace what an earlier conversion wrote.")
@click.pass_context
def command(
    click_context: click.Context,
    source: str,
    output: Path,
    target: str,
    weights: str,
    group_size: int | None,
    head: str,
    calibration: Path | None,
    no_scaling: bool,
    method: str,
    bits: float | None,
    max_loss: float | None,
    policy: Path | None,
    fallback: str,
    operator: str,
    context: int | None,
    deployment: str,
    coreml_weights: str,
    split: bool,
    i2s_layout: str | None,
    layout: str,
    dtype: str | None,
    ternary: str,
    no_tokenizer: bool,
    overwrite: bool,
) -> None:
    """Convert SOURCE into an ONNX package directory OUTPUT, or into a format of others.

    SOURCE is a Hugging Face directory with safetensors, a GGUF file, a package of ours, or a name of `bitnet-onnx zoo
    list`. Codes that it stores stay as they are unless another precision is asked for.
    """
    started = time.perf_counter()
    _check_target(click_context, target)
    if target not in _QUANTIZED:
        options: SafetensorsOptions | GgufOptions
        if target == Target.GGUF:
            options = GgufOptions(GgufTernary(ternary), FloatType(dtype or "float16"), tokenizer=not no_tokenizer)
        else:
            options = SafetensorsOptions(Layout(layout), FloatType(dtype or "float32"))
        with _bar() as bar:
            written = export(
                source,
                output,
                options,
                context_length=context,
                i2s_layout=i2s_layout,
                overwrite=overwrite,
                written=None if bar is None else bar.weights,
            )
        report_export(written, time.perf_counter() - started)
        return
    if no_scaling and calibration is None:
        raise click.UsageError("--no-scaling belongs to --calibration: without it nothing is scaled", click_context)
    if operator != Operators.BITNET and _is_given(click_context, "fallback"):
        raise click.UsageError(
            f"--fallback belongs to --operator bitnet: {operator} operators need no function bodies", click_context
        )
    given = PrecisionOptions(weights, head, group_size, method, policy, calibration, bits, max_loss)
    named = frozenset(name for name in ("weights", "head", "group_size") if _is_given(click_context, name))
    planned = plan(given, named=named)
    with _bar() as bar:
        progress, searched = (None, None) if bar is None else (bar.layer, bar.searched)
        if target == _COREML:
            conversion = convert_coreml(
                source,
                output,
                CoreMLOptions(DeploymentTarget(deployment), TernaryStorage(coreml_weights), split),
                policy=planned.policy,
                calibration=planned.statistics,
                scaling=not no_scaling,
                context_length=context,
                i2s_layout=i2s_layout,
                overwrite=overwrite,
                progress=progress,
                searched=searched,
            )
        else:
            conversion = convert(
                source,
                output,
                policy=planned.policy,
                calibration=planned.statistics,
                scaling=not no_scaling,
                fallback=fallback,
                operator=operator,
                context_length=context,
                i2s_layout=i2s_layout,
                overwrite=overwrite,
                progress=progress,
                searched=searched,
            )
    report_conversion(conversion, weights, time.perf_counter() - started)
    if planned.found is not None:
        click.echo(f"  expected loss: {planned.found.loss:.3g} nats a token (`bitnet-onnx evaluate` measures it)")


def _check_target(context: click.Context, target: str) -> None:
    """Refuse an option of another target than the one asked for: it would silently do nothing."""
    for name, targets in _TARGETS.items():
        if target not in targets and _is_given(context, name):
            option = next(parameter.opts[0] for parameter in context.command.params if parameter.name == name)
            raise click.UsageError(f"{option} belongs to --to {' or '.join(targets)}, not to {target}", context)


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


class _Bar:
    """What is done, on a bar of one stage behind the other."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("reading", total=None, pace="")
        self._started = time.perf_counter()

    def searched(self, done: int, total: int) -> None:
        """So many inputs have scales, of so many."""
        # The pace of the weights counts from here on.
        self._started = time.perf_counter()
        self._bar.update(self._task, completed=done, total=total, description="scaling", pace=f"{done} of {total}")

    def weights(self, done: int, total: int, last: str) -> None:
        """So many weights are written, of so many; the last matrix."""
        pace = _pace(done, total, time.perf_counter() - self._started)
        self._bar.update(self._task, completed=done, total=total, description=escape(last), pace=pace)

    def layer(self, done: int, total: int, layer: LayerRecord) -> None:
        """The same, by the record of the last matrix."""
        self.weights(done, total, layer.role)


@contextmanager
def _bar() -> Iterator[_Bar | None]:
    """A progress bar on a terminal, None elsewhere."""
    if not error_console().is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}", table_column=Column(width=_NAME_WIDTH, no_wrap=True)),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TextColumn("{task.fields[pace]}"),
    )
    with Progress(*columns, console=error_console(), transient=True) as bar:
        yield _Bar(bar)


def _pace(done: int, total: int, seconds: float) -> str:
    """Weights a second so far, and the time left at that: `81.2 M weights/s, 0:12 left`."""
    rate = done / max(seconds, 1e-6)
    minutes, rest = divmod(round((total - done) / max(rate, 1.0)), 60)
    return f"{rate / 1e6:.1f} M weights/s, {minutes}:{rest:02} left"
