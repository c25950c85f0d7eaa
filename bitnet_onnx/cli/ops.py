"""`bitnet-onnx ops`."""

from __future__ import annotations

import click
import onnxruntime as ort

from bitnet_onnx.custom_ops import library_path, library_version
from bitnet_onnx.errors import OperatorError
from bitnet_onnx.runtime.devices import register_library


@click.command()
@click.option("--path", "only_path", is_flag=True, help="Print the path and nothing else.")
def command(only_path: bool) -> None:
    """Locate the operator library, for `register_custom_ops_library` in any onnxruntime application."""
    path = library_path()
    if path is None:
        raise OperatorError(
            "the operator library is not built; packages run on their function bodies, only slower: "
            "reinstall with a C++17 compiler present to get it"
        )
    register_library(ort.SessionOptions(), path)
    if only_path:
        click.echo(path)
        return
    click.echo(f"library: {path}")
    click.echo(f"version: {library_version()}")
    click.echo(f"loads in onnxruntime {ort.__version__}")
