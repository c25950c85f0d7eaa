"""How long does a Core ML package take, how much memory, and how large is it?

    python -P benchmarks/coreml_conversion.py --out benchmarks/results/coreml-conversion-bitnet-2b4t.json

A checkpoint of bfloat16 masters in the sizes of a known model is written to a temporary directory, converted through
the command line in a process of its own in each of the ways that a package can be written, and deleted.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click

from bitnet_onnx.benchmarks._synthetic_checkpoint import write_random_checkpoint
from bitnet_onnx.benchmarks.conversion import convert
from bitnet_onnx.benchmarks.results import Report
from bitnet_onnx.benchmarks.shape import SHAPES

#: Ways to write a package, by what they are called in the report.
WAYS: Final[Mapping[str, Sequence[str]]] = {
    "lut": (),
    "lut, split": ("--split",),
    "sparse": ("--coreml-weights", "sparse"),
}


def measure(name: str, folder: Path | None, ways: Sequence[str]) -> Report:
    """Make the checkpoint, convert it in each way, and delete everything.

    Args:
        name: a key of `SHAPES`.
        folder: where there is room for the checkpoint and a package; None for the system's temporary directory.
        ways: keys of `WAYS`.

    Raises:
        BitnetOnnxError: a conversion failed, with its last words.
    """
    spec, facts = SHAPES[name].spec, {}
    with tempfile.TemporaryDirectory(dir=folder) as made:
        source, package = Path(made, "source"), Path(made, "package.mlpackage")
        source_bytes = write_random_checkpoint(spec, source)
        for way in ways:
            run = convert(source, package, ("--to", "coreml", "--overwrite", *WAYS[way]))
            sizes = {path.name: path.stat().st_size for path in package.rglob("*") if path.is_file()}
            facts[way] = {**asdict(run), "bytes": sizes}
            shutil.rmtree(package)
    return Report(
        benchmark="coreml-conversion",
        settings={"shape": name},
        comparisons=(),
        facts={"source_bytes": source_bytes, "ways": facts},
        notes=(
            f"The weights are random bfloat16 masters, in the sizes of {name}; blocks become ternary, the head int8.",
            "The packages have never been opened on Apple hardware: this measures how they are written.",
        ),
    )


@click.command()
@click.option("--shape", type=click.Choice(list(SHAPES)), default="bitnet-2b4t", show_default=True)
@click.option("--folder", type=click.Path(path_type=Path, exists=True), help="Where to write; the temporary directory.")
@click.option("--way", "ways", type=click.Choice(list(WAYS)), multiple=True, help="Only these.  [default: all]")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON file to write.")
def main(shape: str, folder: Path | None, ways: tuple[str, ...], out: Path) -> None:
    """Measure conversions to Core ML."""
    report = measure(shape, folder, ways or tuple(WAYS))
    report.write(out)
    click.echo(report.facts)


if __name__ == "__main__":
    main()
