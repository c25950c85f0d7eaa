"""The verbs as Python functions: `convert`, `export`, `inspect`, `load`."""

from __future__ import annotations

from pathlib import Path

from bitnet_onnx import converters, model_zoo
from bitnet_onnx.converters import GgufOptions, SafetensorsOptions
from bitnet_onnx.errors import InputError
from bitnet_onnx.inspection import Inspection, inspect
from bitnet_onnx.policy import CHOICES, HEAD_ACTIVATION_BITS, Policy, Precision, Weights, default_group_size
from bitnet_onnx.runtime import Generation, Model, SamplingParameters, load

__all__ = [
    "Generation",
    "GgufOptions",
    "Inspection",
    "Model",
    "SafetensorsOptions",
    "SamplingParameters",
    "convert",
    "export",
    "inspect",
    "load",
    "make_policy",
]


def make_policy(weights: str = "auto", head: str = "auto", group_size: int | None = None) -> Policy:
    """A policy out of the names that the command line takes.

    Args:
        weights: `auto`, `keep`, `ternary`, `int4`, `int6`, `int8` or `float32`, for the blocks.
        head: `auto`, `keep`, `int8`, `int6`, `int4` or `float32`, for the vocabulary head and the embedding; `auto`
            keeps what is ternary or stored in codes and makes any other int8.
        group_size: columns that share a scale in integer weights of the blocks; 0 for one scale a row; None for
            the default of the precision.

    Raises:
        InputError: a name is unknown or the group size impossible.
    """
    body, top = _weights(weights, "weights"), _weights(head, "head")
    size = default_group_size(body) if group_size is None else group_size
    of_floats = Weights.INT8 if top is Weights.AUTO else top
    return Policy(
        Precision(body, size),
        Precision(top, default_group_size(of_floats), HEAD_ACTIVATION_BITS, otherwise=Weights.INT8),
    )


def convert(
    source: str | Path,
    output: str | Path,
    *,
    weights: str = "auto",
    head: str = "auto",
    group_size: int | None = None,
    fallback: str = "fast",
    context_length: int | None = None,
    i2s_layout: str | None = None,
    overwrite: bool = False,
    progress: converters.Progress | None = None,
) -> converters.Conversion:
    """Convert a checkpoint into an ONNX package directory.

    Args:
        source: a Hugging Face directory, a GGUF file, a package, or the name of a model of the zoo.
        output: the directory to create; it appears only when it is complete.
        weights: precision of the blocks, see `make_policy`.
        head: precision of the head and the embedding, see `make_policy`.
        group_size: columns that share a scale, see `make_policy`.
        fallback: function bodies for runtimes without the operator library: `fast` or `exact`.
        context_length: positions that the package has room for instead of those that the checkpoint names.
        i2s_layout: `x86` where the I2_S matrices of a GGUF file are in blocks of 128; the file does not tell.
        overwrite: replace an existing package.
        progress: called after each matrix with how many weights are done, how many there are, and its record.

    Raises:
        InputError: an argument is wrong; its subclasses tell of a broken or unsupported checkpoint, of an output that
            exists, and of a model of the zoo that cannot be fetched.
    """
    policy = make_policy(weights, head, group_size)
    if fallback not in list(converters.Fallback):
        raise InputError(f"fallback is {fallback!r}: choose fast or exact")
    return converters.convert(
        model_zoo.resolve(source),
        output,
        policy=policy,
        fallback=converters.Fallback(fallback),
        context_length=context_length,
        i2s_layout=i2s_layout,
        overwrite=overwrite,
        progress=progress,
    )


def export(
    source: str | Path,
    output: str | Path,
    options: SafetensorsOptions | GgufOptions,
    *,
    context_length: int | None = None,
    i2s_layout: str | None = None,
    overwrite: bool = False,
    written: converters.Written | None = None,
) -> converters.Export:
    """Write a model in a format that others read.

    Args:
        source: a Hugging Face directory, a GGUF file, a package, or the name of a model of the zoo.
        output: the directory or the `.gguf` file to create; it appears only when it is complete.
        options: say which format, and how: `SafetensorsOptions` or `GgufOptions`.
        context_length: positions that a GGUF file names instead of those that the source names.
        i2s_layout: see `convert`.
        overwrite: replace what was written here before.
        written: called after each tensor with how many are written, how many there are, and the name of the last.

    Raises:
        InputError: an argument is wrong; its subclasses tell of a broken or unsupported source, of an output that
            exists, and of what the format has no room for.
    """
    return converters.export(
        model_zoo.resolve(source),
        output,
        options,
        context_length=context_length,
        i2s_layout=i2s_layout,
        overwrite=overwrite,
        written=written,
    )


def _weights(name: str, argument: str) -> Weights:
    if name not in CHOICES:
        raise InputError(f"{argument} is {name!r}: choose one of {', '.join(CHOICES)}")
    return Weights(name)
