"""What a training run leaves: a Hugging Face directory, which `convert` and transformers read."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bitnet_onnx.converters._config import Config
from bitnet_onnx.converters.export import Export, FloatType, Layout, Target, Written
from bitnet_onnx.converters.export._safetensors_file import SHARD_BYTES, is_export
from bitnet_onnx.converters.export._stored import StoredForm, stored_forms
from bitnet_onnx.converters.export.safetensors import CODES_PER_BYTE, bitnet_scheme, write_directory
from bitnet_onnx.converters.families import find
from bitnet_onnx.converters.model import SourceModel
from bitnet_onnx.converters.onnx._directory import Kind, new_directory
from bitnet_onnx.errors import InputError, UnsupportedError
from bitnet_onnx.integer import quantize_integer
from bitnet_onnx.json_input import shown
from bitnet_onnx.policy import HEAD_ROLES
from bitnet_onnx.quantized import FloatArray, QuantizedTensor
from bitnet_onnx.ternary import quantize_absmean
from bitnet_onnx.training.settings import BlockWeights, HeadWeights
from bitnet_onnx.training.start import Start, is_linear

#: A directory that may be replaced.
DIRECTORY: Final = Kind("directory of weights", is_export, "its weights were written by something else")

_HEAD_BITS: Final = 8


class Stored(enum.StrEnum):
    """How ternary matrices are stored."""

    #: masters where a checkpoint can say that they are such, else values
    AUTO = "auto"
    #: the floats that training moves; whoever runs the model rounds them in every forward
    MASTERS = "masters"
    #: two bits a weight
    PACKED = "packed"
    #: floats that are {-a, 0, a}
    VALUES = "values"


@dataclass(frozen=True, slots=True)
class Trained:
    """What was trained.

    Attributes:
        weights: of the linear layers in the blocks.
        activation_bits: of their inputs, 8 or 0.
        head: embedding and head.
    """

    weights: BlockWeights = BlockWeights.TERNARY
    activation_bits: int = 8
    head: HeadWeights = HeadWeights.FLOAT


def write_checkpoint(
    directory: Path,
    start: Start,
    value: Callable[[str], FloatArray],
    trained: Trained,
    *,
    stored: Stored = Stored.AUTO,
    dtype: FloatType = FloatType.FLOAT32,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    written: Written | None = None,
) -> Export:
    """Write a trained decoder as a Hugging Face directory.

    `convert` makes of it exactly the codes and scales that the training graph computed with, whichever way ternary
    matrices are stored, as long as masters are float32. An int8 head is stored as the values it is rounded to, which
    `convert` rounds to themselves.

    Args:
        directory: to create; it appears only when it is complete.
        start: what the training began with.
        value: gives a tensor by role, float32.
        trained: say what.
        stored: how ternary matrices are.
        dtype: of all floats.
        shard_bytes: of one weight file.
        overwrite: replace what was written here before.
        written: called after each tensor.

    Raises:
        PackageError: the directory exists or cannot be written.
        UnsupportedError: the layout of the family, or `dtype`, has no room for what was trained.
    """
    forms = stored_forms(find(Config(start.config)), start.spec)
    form = _chosen(stored, start, forms, trained)
    config = dict(start.config)
    if form is Stored.MASTERS:
        dense = [one.module for one in forms if len(one.shape) == 2 and not one.is_linear]
        config["quantization_config"] = bitnet_scheme("online", dense, start.spec.linear_norm_epsilon)
    model = SourceModel(
        path=directory,
        name=start.name,
        format="training",
        spec=start.spec,
        tensors=TrainedTensors(dict(start.spec.tensors()), value, trained, form),
        config=config,
        generation_config=start.generation_config,
        trained_ternary=form is Stored.MASTERS,
        tokenizer=start.tokenizer,
        sha256=_no_digest,
    )
    with new_directory(directory, overwrite=overwrite, kind=DIRECTORY) as work:
        layout, losses = write_directory(
            work,
            model,
            layout=Layout.PACKED if form is Stored.PACKED else Layout.DENSE,
            dtype=dtype,
            shard_bytes=shard_bytes,
            written=written,
        )
        files = {path.name: path.stat().st_size for path in sorted(work.iterdir())}
    return Export(directory, Target.SAFETENSORS, start.spec, layout, files, losses)


@dataclass(frozen=True, slots=True)
class TrainedTensors:
    """Trained tensors by role, as a checkpoint is to hold them.

    Attributes:
        shapes: of all tensors.
        value: gives one as training has it.
        trained: what was trained.
        stored: how ternary matrices are stored, never `AUTO`.
    """

    shapes: dict[str, tuple[int, ...]]
    value: Callable[[str], FloatArray]
    trained: Trained
    stored: Stored

    def shape(self, role: str) -> tuple[int, ...]:
        """The tensor's shape."""
        return self.shapes[role]

    def read(self, role: str) -> FloatArray:
        """A whole tensor."""
        matrix = self.quantized(role.removesuffix(".weight")) if self._as_values(role) else None
        if matrix is not None:
            return matrix.dequantize()
        return self._rounded_head(role, self.value(role))

    def read_rows(self, role: str, start: int, stop: int) -> FloatArray:
        """Some rows of a matrix."""
        if self._as_values(role):
            # One scale for all rows: it needs them all.
            return self.read(role)[start:stop]
        return self._rounded_head(role, self.value(role)[start:stop])

    def quantized(self, role: str, /) -> QuantizedTensor | None:
        """The codes and the scale that the training graph computes with, or None for a matrix of floats."""
        return quantize_absmean(self.value(f"{role}.weight")) if self._is_ternary(role) else None

    def is_master(self, role: str, /) -> bool:
        """Whether a matrix was trained to be rounded to ternary."""
        return self._is_ternary(role)

    def _is_ternary(self, role: str) -> bool:
        return self.trained.weights is BlockWeights.TERNARY and is_linear(role)

    def _as_values(self, role: str) -> bool:
        """Whether a tensor is stored as what it is rounded to: outside of blocks nothing says that it is a master."""
        name = role.removesuffix(".weight")
        return self._is_ternary(name) and (self.stored is Stored.VALUES or not name.startswith("layers."))

    def _rounded_head(self, role: str, values: FloatArray) -> FloatArray:
        if self.trained.head is not HeadWeights.INT8 or role.removesuffix(".weight") not in HEAD_ROLES:
            return values
        return quantize_integer(values, _HEAD_BITS).dequantize() if values.ndim == 2 else values


def _chosen(stored: Stored, start: Start, forms: list[StoredForm], trained: Trained) -> Stored:
    """The form in which the checkpoint keeps its matrices.

    Raises:
        UnsupportedError: the form that is asked for has no room for them.
        InputError: nothing is ternary.
    """
    if trained.weights is not BlockWeights.TERNARY:
        if stored in {Stored.PACKED, Stored.VALUES}:
            raise InputError(f"stored is {stored}: the model is trained with float weights; choose auto")
        return Stored.VALUES
    if stored is Stored.VALUES:
        return stored
    why = None if trained.activation_bits else "rounds activations to 8 bits, and the model is trained with floats"
    why = why or next(_unfit(forms, packed=stored is Stored.PACKED), None)
    if why is None:
        return Stored.MASTERS if stored is Stored.AUTO else stored
    if stored is Stored.AUTO:
        return Stored.VALUES
    raise UnsupportedError(f"{start.name}: quantization_config `bitnet` {why}; choose values")


def _unfit(forms: Iterable[StoredForm], *, packed: bool) -> Iterator[str]:
    """Why transformers would read other matrices than were trained."""
    for form in forms:
        if not form.is_linear:
            continue
        if form.transposed:
            yield f"skips layers that are stored transposed, as {shown(form.name)} is"
        elif len(form.parts) > 1:
            yield f"has one scale a tensor, and {shown(form.name)} holds {len(form.parts)} matrices"
        elif packed and form.shape[0] % CODES_PER_BYTE:
            yield f"packs {CODES_PER_BYTE} rows in a byte, and {shown(form.name)} has {form.shape[0]}"


def _no_digest() -> str:
    raise NotImplementedError("what is trained has no digest")
