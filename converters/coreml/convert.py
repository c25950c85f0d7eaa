"""A checkpoint into a Core ML package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from bitnet_onnx.converters._config import Config
from bitnet_onnx.converters._scaling import scale_inputs
from bitnet_onnx.converters.convert import Conversion
from bitnet_onnx.converters.coreml.options import CoreMLOptions
from bitnet_onnx.converters.coreml.package import (
    DEFAULT_CONTEXT,
    MODEL_FILE,
    TOKENIZER_SUFFIX,
    WEIGHT_FILE,
    is_ours,
    write_bundle,
    write_tokenizer,
)
from bitnet_onnx.converters.model import SourceModel, describe, open_model
from bitnet_onnx.converters.onnx._directory import Kind, new_directory
from bitnet_onnx.converters.onnx._space import check_space
from bitnet_onnx.converters.onnx.package import Progress
from bitnet_onnx.errors import InputError, PackageError
from bitnet_onnx.package_format import CONFIG, COREML_SUFFIX, GENERATION_CONFIG, SCALING, TOKENIZER_CONFIG
from bitnet_onnx.policy import Policy
from bitnet_onnx.quantization.statistics import Calibration

#: What `SourceModel.format` says of our own packages.
_PACKAGE: Final = "package"
#: Of the files beside a package.
_SUFFIXES: Final = frozenset({".json", ".jinja"})
_BUNDLE: Final = Kind("Core ML package", is_ours, "it was written by something else")


def _is_tokenizer(directory: Path) -> bool:
    """Whether a directory holds what is written beside a package, and nothing like weights."""
    complete = all((directory / name).is_file() for name in (CONFIG, GENERATION_CONFIG, TOKENIZER_CONFIG))
    return complete and all(
        path.is_file() and (path.suffix in _SUFFIXES or path.name == SCALING) for path in directory.iterdir()
    )


_TOKENIZER: Final = Kind("tokenizer directory", _is_tokenizer, "it holds other files")


def tokenizer_directory(output: Path) -> Path:
    """Where the tokenizer's files of a package go: `X.tokenizer` beside `X.mlpackage`."""
    return output.with_suffix(TOKENIZER_SUFFIX)


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
    progress: Progress | None = None,
    searched: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Convert a checkpoint into a Core ML package.

    Args:
        source: a Hugging Face directory, a GGUF file or a package of ours.
        output: the `.mlpackage` to create; it appears only when it is complete, after the directory `.tokenizer`
            beside it.
        options: how it is written.
        policy: the precision of each layer, as of `bitnet_onnx.converters.convert`.
        calibration: what is known of the inputs of linear layers.
        scaling: with a calibration, scale inputs of layers where that makes them easier to round.
        context_length: positions that the package has room for; by default those that the checkpoint names, at most
            2048.
        i2s_layout: `x86` where the I2_S matrices of a GGUF file are in blocks of 128; the file does not tell.
        overwrite: replace an existing package.
        progress: called after each matrix.
        searched: called after each input whose scales were searched.

    Raises:
        CheckpointError: the checkpoint is broken or contradicts itself.
        UnsupportedError: the checkpoint is of a kind that is not implemented, or too large for a package.
        PackageError: the output exists or cannot be written.
        InputError: the output has another suffix, or coremltools is not installed.
    """
    source, output, options = Path(source), Path(output), options or CoreMLOptions()
    if output.suffix != COREML_SUFFIX:
        raise InputError(f"{output}: the name of a Core ML package ends in {COREML_SUFFIX}")
    if source.resolve().is_relative_to(output.resolve()):
        raise PackageError(f"{output} holds the checkpoint {source}: choose another output")
    beside = tokenizer_directory(output)
    # The tokenizer is in its place before the package is: who finds a package finds all of it.
    with (
        new_directory(output, overwrite=overwrite, kind=_BUNDLE) as bundle,
        new_directory(beside, overwrite=overwrite, kind=_TOKENIZER) as tokenizer,
        open_model(source, context_length=context_length, i2s_layout=i2s_layout) as opened,
    ):
        model = opened if context_length is not None else _with_default_context(opened)
        chosen, scaled = policy or Policy(), 0
        check_space(bundle, model.spec, model.tensors, chosen)
        if calibration is not None and scaling:
            model, calibration, scaled = scale_inputs(model, chosen, calibration, tokenizer, searched)
        layers = write_bundle(
            bundle,
            model,
            options,
            policy=chosen,
            calibration=calibration,
            scaled_inputs=scaled,
            progress=progress,
        )
        write_tokenizer(tokenizer, model)
        graph_bytes, data_bytes = ((bundle / name).stat().st_size for name in (MODEL_FILE, WEIGHT_FILE))
    return Conversion(output, model.spec, layers, graph_bytes, data_bytes, model.trained_ternary, scaled)


def _with_default_context(model: SourceModel) -> SourceModel:
    """With room for no more positions than a package has where nobody asks."""
    if model.spec.context_length <= DEFAULT_CONTEXT:
        return model
    if model.format == _PACKAGE:
        return replace(model, spec=replace(model.spec, context_length=DEFAULT_CONTEXT))
    # Some rotations depend on it.
    return replace(model, spec=describe(Config(model.config), DEFAULT_CONTEXT).spec)
