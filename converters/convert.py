"""A checkpoint into an ONNX package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bitnet_onnx.converters._scaling import scale_inputs
from bitnet_onnx.converters.model import open_model
from bitnet_onnx.converters.onnx._directory import new_directory
from bitnet_onnx.converters.onnx._linears import LayerRecord
from bitnet_onnx.converters.onnx.bodies import Fallback
from bitnet_onnx.converters.onnx.package import Progress, bits_per_weight, write_package
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.errors import InputError, PackageError
from bitnet_onnx.package_format import MODEL, MODEL_DATA, Operators
from bitnet_onnx.policy import Policy
from bitnet_onnx.quantization.statistics import Calibration


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion wrote.

    Attributes:
        path: the package.
        spec: the decoder.
        layers: every matrix with its precision and error.
        graph_bytes: size of `model.onnx`.
        data_bytes: size of `model.onnx.data`.
        trained_ternary: the model was trained with ternary weights.
        scaled_inputs: inputs of layers that were scaled.
    """

    path: Path
    spec: DecoderSpec
    layers: tuple[LayerRecord, ...]
    graph_bytes: int
    data_bytes: int
    trained_ternary: bool
    scaled_inputs: int = 0

    @property
    def bits_per_weight(self) -> float:
        """Mean over all quantized or float matrices, the head included, scales counted."""
        return bits_per_weight(self.layers)


def convert(
    source: str | Path,
    output: str | Path,
    *,
    policy: Policy | None = None,
    calibration: Calibration | None = None,
    scaling: bool = True,
    fallback: Fallback = Fallback.FAST,
    operators: Operators = Operators.BITNET,
    context_length: int | None = None,
    i2s_layout: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    searched: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Convert a checkpoint into an ONNX package directory.

    Args:
        source: a Hugging Face directory or a GGUF file.
        output: the directory to create; it appears only when it is complete.
        policy: the precision of each layer; the default keeps ternary matrices and makes others int4 (ternary
            by absmean where the family was trained for it), the head int8.
        calibration: what is known of the inputs of linear layers, for the methods that use it.
        scaling: with a calibration, scale inputs of layers where that makes them easier to round; the float model stays
            the same.
        fallback: the function bodies that runtimes without the operator library execute: `fast` or `exact`.
        operators: what the graph is written in; only ours have function bodies.
        context_length: positions that the package has room for instead of those that the checkpoint names.
        i2s_layout: `x86` where the I2_S matrices of a GGUF file are in blocks of 128; the file does not tell.
        overwrite: replace an existing package.
        progress: called after each matrix.
        searched: called after each input whose scales were searched: how many are done, and how many there are.

    Returns:
        What was written.

    Raises:
        CheckpointError: the checkpoint is broken or contradicts itself.
        UnsupportedError: the checkpoint is of a kind that is not implemented.
        PackageError: the output exists or cannot be written.
        InputError: operators without function bodies cannot have the `exact` ones.
    """
    if fallback is Fallback.EXACT and operators is not Operators.BITNET:
        raise InputError(
            f"the exact fallback is a function body, and a graph of {operators} operators has none: "
            f"choose the bitnet operators, or leave the fallback out"
        )
    if Path(source).resolve().is_relative_to(Path(output).resolve()):
        raise PackageError(f"{output} holds the checkpoint {source}: choose another output")
    with (
        new_directory(Path(output), overwrite=overwrite) as work,
        open_model(Path(source), context_length=context_length, i2s_layout=i2s_layout) as model,
    ):
        chosen, scaled = policy or Policy(), 0
        if calibration is not None and scaling:
            model, calibration, scaled = scale_inputs(model, chosen, calibration, work, searched)
        layers = write_package(
            work,
            model,
            policy=chosen,
            fallback=fallback,
            operators=operators,
            calibration=calibration,
            scaled_inputs=scaled,
            progress=progress,
        )
        graph_bytes, data_bytes = ((work / name).stat().st_size for name in (MODEL, MODEL_DATA))
    return Conversion(Path(output), model.spec, layers, graph_bytes, data_bytes, model.trained_ternary, scaled)
