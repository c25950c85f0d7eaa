"""Models out of this package: a Hugging Face directory or a GGUF file from anything that can be converted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bitnet_onnx.converters.export._floats import FloatType
from bitnet_onnx.converters.export._gguf_ternary import GgufTernary
from bitnet_onnx.converters.export._result import Export, Target, Written
from bitnet_onnx.converters.export._safetensors_file import SHARD_BYTES, is_export
from bitnet_onnx.converters.export.gguf import is_gguf_export, write_gguf
from bitnet_onnx.converters.export.safetensors import Layout, write_directory
from bitnet_onnx.converters.model import open_model
from bitnet_onnx.converters.onnx._directory import Kind, new_directory, new_file
from bitnet_onnx.errors import InputError, PackageError

__all__ = [
    "Export",
    "FloatType",
    "GgufOptions",
    "GgufTernary",
    "Layout",
    "SafetensorsOptions",
    "Target",
    "Written",
    "export",
]

_DIRECTORY = Kind("directory of weights", is_export, "its weights were written by something else")
_FILE = Kind("GGUF file", is_gguf_export, "it was written by something else")


@dataclass(frozen=True, slots=True)
class SafetensorsOptions:
    """How a Hugging Face directory is written.

    Attributes:
        layout: of the matrices of the blocks.
        dtype: of everything that is not packed.
        shard_bytes: of one weight file.
    """

    layout: Layout = Layout.AUTO
    dtype: FloatType = FloatType.FLOAT32
    shard_bytes: int = SHARD_BYTES


@dataclass(frozen=True, slots=True)
class GgufOptions:
    """How a GGUF file is written.

    Attributes:
        ternary: type of ternary matrices whose rows are whole blocks of 256.
        dtype: of matrices that are not ternary.
        tokenizer: the file carries the tokenizer, without which most readers do not open it.
    """

    ternary: GgufTernary = GgufTernary.TQ2_0
    dtype: FloatType = FloatType.FLOAT16
    tokenizer: bool = True


def export(
    source: str | Path,
    output: str | Path,
    options: SafetensorsOptions | GgufOptions,
    *,
    context_length: int | None = None,
    i2s_layout: str | None = None,
    overwrite: bool = False,
    written: Written | None = None,
) -> Export:
    """Write a model in a format that others read.

    Args:
        source: a Hugging Face directory, a GGUF file or a package of ours.
        output: the directory or, for GGUF, the file to create; it appears only when it is complete.
        options: say which format, and how.
        context_length: positions that a GGUF file names instead of those that the source names.
        i2s_layout: how I2_S matrices of a GGUF file are laid out (`x86`), which the file does not tell.
        overwrite: replace what was written here before.
        written: called after each tensor.

    Raises:
        CheckpointError, PackageError: the source is broken, or the output exists or cannot be written.
        UnsupportedError: the format has no room for something that the model has.
    """
    source, output = Path(source), Path(output)
    if source.resolve().is_relative_to(output.resolve()):
        raise PackageError(f"{output} holds the source {source}: choose another output")
    if isinstance(options, SafetensorsOptions):
        if context_length is not None:
            raise InputError("a Hugging Face directory keeps the context of its config.json: leave context_length out")
        with (
            new_directory(output, overwrite=overwrite, kind=_DIRECTORY) as work,
            open_model(source, i2s_layout=i2s_layout) as model,
        ):
            layout, losses = write_directory(
                work,
                model,
                layout=options.layout,
                dtype=options.dtype,
                shard_bytes=options.shard_bytes,
                written=written,
            )
            files = {path.name: path.stat().st_size for path in sorted(work.iterdir())}
        return Export(output, Target.SAFETENSORS, model.spec, layout, files, losses)
    if output.suffix.lower() != ".gguf":
        raise InputError(f"{output}: the name of a GGUF file ends in .gguf")
    with (
        new_file(output, overwrite=overwrite, kind=_FILE) as path,
        open_model(source, context_length=context_length, i2s_layout=i2s_layout) as model,
    ):
        layout, losses = write_gguf(
            path,
            model,
            ternary=options.ternary,
            dtype=options.dtype,
            tokenizer=options.tokenizer,
            written=written,
        )
        files = {output.name: path.stat().st_size}
    return Export(output, Target.GGUF, model.spec, layout, files, losses)
