"""`bitnet-onnx ops`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click
import onnxruntime as ort

from bitnet_onnx.custom_ops import library_facts, required_library
from bitnet_onnx.custom_ops.sdk import SdkFile, copy_sdk, verify_sdk
from bitnet_onnx.errors import InputError
from bitnet_onnx.runtime.devices import register_library


@click.command()
@click.option("--path", "only_path", is_flag=True, help="Print the path and nothing else.")
@click.option(
    "--copy",
    "target",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write the library, its licence, C header, CMake package, pkg-config file and checksums into DIR.",
)
@click.option("--overwrite", is_flag=True, help="With --copy: replace files that have other content.")
@click.option(
    "--verify",
    "verified",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Compare the files in DIR with its checksums.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def command(only_path: bool, target: Path | None, overwrite: bool, verified: Path | None, as_json: bool) -> None:
    """Locate the operator library, or copy it for applications in any language."""
    if sum([only_path, target is not None, verified is not None]) > 1:
        raise InputError("--path, --copy and --verify do different things: give one of them")
    if overwrite and target is None:
        raise InputError("--overwrite goes with --copy")
    if verified is not None:
        _show_files(verified, verify_sdk(verified), as_json, "intact")
        return
    path = required_library()
    register_library(ort.SessionOptions(), path)
    if target is not None:
        _show_files(target, copy_sdk(target, overwrite=overwrite), as_json, "written")
        return
    if only_path and not as_json:
        click.echo(path)
        return
    facts = library_facts(path)
    if as_json:
        click.echo(json.dumps({**asdict(facts), "path": str(path), "onnxruntime": ort.__version__}, indent=2))
        return
    click.echo(f"library: {path}")
    click.echo(f"version: {facts.build}")
    click.echo(f"operators: {facts.runs}")
    click.echo(f"loads in onnxruntime {ort.__version__}")


def _show_files(directory: Path, files: tuple[SdkFile, ...], as_json: bool, state: str) -> None:
    if as_json:
        click.echo(json.dumps({"directory": str(directory), "files": [asdict(file) for file in files]}, indent=2))
        return
    for file in files:
        click.echo(f"{state}: {directory / file.name}")
