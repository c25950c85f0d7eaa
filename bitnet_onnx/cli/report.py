"""`bitnet-onnx report`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from bitnet_onnx import model_zoo
from bitnet_onnx.calibration import open_statistics
from bitnet_onnx.cli._console import error_console, printable
from bitnet_onnx.cli._package import package_path
from bitnet_onnx.cli._progress import progress_bar
from bitnet_onnx.errors import InputError, UnsupportedError
from bitnet_onnx.evaluation.quality import QualityOptions, WindowRule
from bitnet_onnx.report import ReportOptions, judge, measure, render
from bitnet_onnx.runtime import PackageInfo
from bitnet_onnx.training.monitoring.history import LOG_NAME
from bitnet_onnx.training.monitoring.page import is_run, write_page


@click.command()
@click.argument("target", metavar="PACKAGE|RUN", type=package_path)
@click.option("--source", help="The checkpoint that the package was made from, or its name in the zoo.")
@click.option(
    "--text",
    "texts",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A UTF-8 text to score, which calibration has not seen; may be given several times.",
)
@click.option(
    "--tokens", type=click.IntRange(min=2), default=8192, show_default=True, help="Tokens of each text that are scored."
)
@click.option("--output", "-o", type=click.Path(path_type=Path), help="The HTML file to write.")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="STATS",
    help="What `bitnet-onnx calibrate --sensitivity` wrote, for the chart of size against loss.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def command(
    target: Path,
    source: str | None,
    texts: tuple[Path, ...],
    tokens: int,
    output: Path | None,
    calibration: Path | None,
    as_json: bool,
) -> None:
    """Measure what PACKAGE lost against its source, and write a page about it; or write the page of a training RUN.

    A package needs --source and --text. Its page has the verdict first, then the worst layers with what would help
    them, and charts. The page of a run, out of its log, goes to RUN/report.html or --output.
    """
    if is_run(target):
        _write_run(target, source, texts, output, as_json)
        return
    if source is None or not texts:
        raise click.UsageError("a package needs --source and --text; a training run needs neither")
    if output is None and not as_json:
        raise click.UsageError("nothing to write: give --output, --json or both")
    if output is not None and not output.parent.is_dir():
        raise InputError(f"{output}: the folder {output.parent} does not exist")
    sensitivity = () if calibration is None else open_statistics(calibration).sensitivity
    if output is not None:
        _check_library()
    with progress_bar() as progress:
        options = ReportOptions(_quality(target, tokens), sensitivity=sensitivity)
        found = measure(target, model_zoo.resolve(source), texts, options, progress=progress)
    if output is not None:
        try:
            output.write_text(render(found), encoding="utf-8")
        except OSError as error:
            raise InputError(f"{output}: cannot be written: {error.strerror}") from None
    if as_json:
        click.echo(json.dumps(found.as_dict()))
        return
    verdict = judge(found)
    click.echo(f"{verdict.title}\n  {verdict.text}")
    error_console().print(f"written to {printable(str(output))}", highlight=False, soft_wrap=True)


def _write_run(run: Path, source: str | None, texts: tuple[Path, ...], output: Path | None, as_json: bool) -> None:
    if source is not None or texts or as_json:
        raise click.UsageError(f"{run} is a training run: only --output goes with it; its figures are in {LOG_NAME}")
    written = write_page(run, output)
    error_console().print(f"written to {printable(str(written))}", highlight=False, soft_wrap=True)


def _quality(package: Path, tokens: int) -> QualityOptions:
    """So many tokens of each text, in windows that fit the model."""
    size = min(WindowRule().size, PackageInfo.open(package).architecture.context_length, tokens)
    return QualityOptions(WindowRule(size, tokens=tokens))


def _check_library() -> None:
    """Before minutes of measuring."""
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise UnsupportedError("a report needs matplotlib: pip install 'bitnet-onnx[report]'")
