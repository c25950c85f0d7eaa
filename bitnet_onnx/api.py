"""The verbs as Python functions: `convert`, `convert_coreml`, `export`, `evaluate`, `inspect`, `load`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from bitnet_onnx import converters, model_zoo
from bitnet_onnx.calibration import CollectOptions, ModelStatistics, collect
from bitnet_onnx.converters import CoreMLOptions, GgufOptions, SafetensorsOptions
from bitnet_onnx.errors import InputError
from bitnet_onnx.evaluation import quality
from bitnet_onnx.evaluation.quality import Quality, QualityOptions, WindowRule
from bitnet_onnx.inspection import Inspection, inspect
from bitnet_onnx.package_format import Operators
from bitnet_onnx.policy import HEAD_ACTIVATION_BITS, Policy, Precision, Weights, default_group_size
from bitnet_onnx.quantization.statistics import Calibration
from bitnet_onnx.runtime import Generation, Model, SamplingParameters, load

__all__ = [
    "CoreMLOptions",
    "Generation",
    "GgufOptions",
    "Inspection",
    "Model",
    "Quality",
    "QualityOptions",
    "SafetensorsOptions",
    "SamplingParameters",
    "WindowRule",
    "calibrate",
    "convert",
    "convert_coreml",
    "evaluate",
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


def calibrate(
    source: str | Path,
    texts: Sequence[str | Path],
    output: str | Path,
    options: CollectOptions | None = None,
    *,
    sensitivity_tokens: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> ModelStatistics:
    """Read texts with the float model, and write what its linear layers see to a file.

    Args:
        source: a Hugging Face directory, a GGUF file, a package, or the name of a model of the zoo.
        texts: UTF-8 files.
        output: the file to write; `output` with `.partial` behind it holds what is done meanwhile.
        options: what is read.
        sensitivity_tokens: measure too what each precision of each layer does to the output, on so many tokens.
        progress: called as it goes with what is done now, how many of it are, and how many there are.

    Raises:
        InputError: the model or a text is not usable, or the file cannot be written.
    """
    from bitnet_onnx.calibration.sensitivity import measure_sensitivity  # only those who ask for it pay for it

    path, report = Path(output), progress or _silent
    files, output_partial = [Path(text) for text in texts], path.with_name(f"{path.name}.partial")
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist")
    checkpoint = model_zoo.resolve(source)
    statistics = collect(
        checkpoint,
        files,
        options,
        state=output_partial,
        progress=lambda done, total: report("reading", done, total),
    )
    if sensitivity_tokens is not None:
        statistics.save(output_partial)
        units = measure_sensitivity(
            checkpoint,
            files,
            statistics,
            tokens=sensitivity_tokens,
            progress=lambda done, total, role: report(role, done, total),
        )
        statistics = replace(statistics, sensitivity=units)
    statistics.save(path)
    output_partial.unlink(missing_ok=True)
    return statistics


def _silent(_: str, __: int, ___: int) -> None:
    """No progress."""


def convert(
    source: str | Path,
    output: str | Path,
    *,
    weights: str = "auto",
    head: str = "auto",
    group_size: int | None = None,
    policy: Policy | None = None,
    calibration: Calibration | None = None,
    scaling: bool = True,
    fallback: str = "fast",
    operator: str = "bitnet",
    context_length: int | None = None,
    i2s_layout: str | None = None,
    overwrite: bool = False,
    progress: converters.Progress | None = None,
    searched: Callable[[int, int], None] | None = None,
) -> converters.Conversion:
    """Convert a checkpoint into an ONNX package directory.

    Args:
        source: a Hugging Face directory, a GGUF file, a package, or the name of a model of the zoo.
        output: the directory to create; it appears only when it is complete.
        weights: precision of the blocks, see `make_policy`.
        head: precision of the head and the embedding, see `make_policy`.
        group_size: columns that share a scale, see `make_policy`.
        policy: instead of these three, see `read_policy` and `search_policy`.
        calibration: statistics of the layers' inputs, such as those that `calibrate` gives.
        scaling: with a calibration, scale inputs of layers where that makes them easier to round.
        fallback: function bodies for runtimes without the operator library: `fast` or `exact`.
        operator: what the graph is written in: `bitnet`, ours with function bodies; `stock`, those of ONNX Runtime, for
            programs that load no library; `standard`, those of the ONNX standard alone.
        context_length: positions that the package has room for instead of those that the checkpoint names.
        i2s_layout: `x86` where the I2_S matrices of a GGUF file are in blocks of 128; the file does not tell.
        overwrite: replace an existing package.
        progress: called after each matrix with how many weights are done, how many there are, and its record.
        searched: called after each input whose scales were searched, with how many are done and how many there are.

    Raises:
        InputError: an argument is wrong; its subclasses tell of a broken or unsupported checkpoint, of an output that
            exists, and of a model of the zoo that cannot be fetched.
    """
    if fallback not in list(converters.Fallback):
        raise InputError(f"fallback is {fallback!r}: choose fast or exact")
    if operator not in list(Operators):
        raise InputError(f"operator is {operator!r:.40}: choose one of {', '.join(Operators)}")
    return converters.convert(
        model_zoo.resolve(source),
        output,
        policy=make_policy(weights, head, group_size) if policy is None else policy,
        calibration=calibration,
        scaling=scaling,
        fallback=converters.Fallback(fallback),
        operators=Operators(operator),
        context_length=context_length,
        i2s_layout=i2s_layout,
        overwrite=overwrite,
        progress=progress,
        searched=searched,
    )


def convert_coreml(
    source: str | Path,
    output: str | Path,
    options: CoreMLOptions | None = None,
    *,
    policy: Policy | None = None,
    calibration: Calibration | None = None,
    scaling: bool = True,
    context_length: int | None = None,
    i2s_layout: str | None = None,
    overwrite: bool = False,
    progress: converters.Progress | None = None,
    searched: Callable[[int, int], None] | None = None,
) -> converters.Conversion:
    """Convert a checkpoint into a Core ML package, with the tokenizer's files in a directory beside it.

    Args:
        source: a Hugging Face directory, a GGUF file, a package, or the name of a model of the zoo.
        output: the `.mlpackage` to create; it appears only when it is complete.
        options: the oldest system that opens it, how ternary matrices are stored, and whether it has two functions.
        policy: the precision of each layer, see `make_policy`.
        calibration: see `convert`.
        scaling: see `convert`.
        context_length: positions that the package has room for; by default those that the checkpoint names, at most
            2048.
        i2s_layout: see `convert`.
        overwrite: replace an existing package.
        progress: see `convert`.
        searched: see `convert`.

    Raises:
        InputError: an argument is wrong, or coremltools is not installed; its subclasses tell of a broken or
            unsupported checkpoint, and of an output that exists.
    """
    return converters.convert_coreml(
        model_zoo.resolve(source),
        output,
        options,
        policy=make_policy() if policy is None else policy,
        calibration=calibration,
        scaling=scaling,
        context_length=context_length,
        i2s_layout=i2s_layout,
        overwrite=overwrite,
        progress=progress,
        searched=searched,
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


def evaluate(
    package: str | Path,
    *,
    texts: Sequence[str | Path] = (),
    tasks: Sequence[str | Path] = (),
    reference: str | Path | None = None,
    options: QualityOptions | None = None,
    progress: quality.Progress | None = None,
) -> Quality:
    """Measure how good a package is.

    Args:
        package: the package directory.
        texts: UTF-8 files whose perplexity and bits per byte are wanted.
        tasks: files of multiple-choice questions, a JSON object a line; `docs/quality.md` has the forms.
        reference: a package, a checkpoint or the name of a model of the zoo to compare with, of the same vocabulary. A
            checkpoint is converted to float32 in a temporary directory, which is removed.
        options: which tokens are scored, the bits of activations, threads.
        progress: called as it goes with what is done, how many steps of it, and of how many.

    Raises:
        InputError: an argument or a file is wrong; its subclasses tell of the package and the reference.
        BitnetOnnxError: a model cannot be run, or gives logits that are not finite.
    """
    return quality.evaluate(
        package,
        texts=texts,
        tasks=tasks,
        reference=None if reference is None else model_zoo.resolve(reference),
        options=options,
        progress=progress,
    )


def _weights(name: str, argument: str) -> Weights:
    if name not in list(Weights):
        raise InputError(f"{argument} is {name!r}: choose one of {', '.join(Weights)}")
    return Weights(name)
