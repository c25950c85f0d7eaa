"""Tensors of a GGUF file under the names and in the layouts of transformers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from bitnet_onnx.converters.checkpoints._decode import StoredTensor
from bitnet_onnx.converters.checkpoints._gguf_architectures import Architecture, nearest
from bitnet_onnx.converters.checkpoints._gguf_metadata import Metadata
from bitnet_onnx.errors import CheckpointError, UnsupportedError
from bitnet_onnx.json_input import shown

_BLOCK_NAME: Final = re.compile(r"blk\.(0|[1-9][0-9]{0,5})\.([a-z_]+)\.(weight|bias|scale)")


@dataclass(frozen=True, slots=True)
class Heads:
    """Sizes of attention."""

    query: int
    key_value: int
    dim: int
    rotary_dim: int


@dataclass(frozen=True, slots=True)
class View:
    """What turns stored values into those of transformers.

    Attributes:
        axes: sizes of the axes that the stored rows are made of, two of which trade places; empty to leave rows alone.
        swap: which two.
        transposed: stored as `[out, in]`, shown as `[in, out]`.
        factor: on every value.
        offset: added after that.
    """

    axes: tuple[int, ...] = ()
    swap: tuple[int, int] = (0, 1)
    transposed: bool = False
    factor: float = 1.0
    offset: float = 0.0

    def order(self) -> npt.NDArray[np.intp]:
        """For each row of transformers, which stored row it is."""
        return np.arange(int(np.prod(self.axes))).reshape(self.axes).swapaxes(*self.swap).ravel()


@dataclass(frozen=True, slots=True)
class Renamed:
    """The tensors of a file by their Hugging Face names; those without a view are shown as they are stored."""

    stored: Mapping[str, StoredTensor]
    views: Mapping[str, View]


def rename(
    architecture: Architecture, metadata: Metadata, tensors: Mapping[str, StoredTensor], heads: Heads
) -> Renamed:
    """Find the place of each tensor.

    Raises:
        CheckpointError: a tensor of a layer that there is not, or one whose shape does not fit its place.
        UnsupportedError: a tensor that is not known.
    """
    layers = metadata.integer(metadata.text("general.architecture") + ".block_count")
    stored: dict[str, StoredTensor] = {}
    views: dict[str, View] = {}
    scales: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        if stem in architecture.factors and kind == "weight":
            continue
        match = _BLOCK_NAME.fullmatch(name)
        if match and match[2] in architecture.block and (kind != "scale" or architecture.scales):
            if int(match[1]) >= layers:
                raise CheckpointError(f"{tensor.file.path}: tensor {shown(name)}, but block_count is {layers}")
            stem = match[2]
            target = f"{architecture.layers}.{match[1]}.{architecture.block[stem]}"
        elif stem in architecture.top and kind in {"weight", "bias"}:
            target = architecture.top[stem]
        else:
            raise UnsupportedError(
                f"{tensor.file.path}: tensor {shown(name)} is not known in a {architecture.model_type} model"
                f"{nearest(name, list(_known(architecture, match[1] if match else '0')))}"
            )
        if kind == "scale":
            scales[target] = tensor
            continue
        view = _view(architecture, stem, tensor, heads)
        parts = _split(tensor, heads) if stem in architecture.fused else {"": tensor}
        for letter, part in parts.items():
            own = f"{target.format(letter)}.{kind}"
            if own in stored:
                raise CheckpointError(f"{tensor.file.path}: tensor {shown(name)} is {own}, which is there already")
            shape = part.info.shape[::-1] if view.transposed else part.info.shape
            stored[own] = replace(part, info=replace(part.info, name=own, shape=shape))
            views[own] = view
    for target, tensor in scales.items():
        own = target + ".weight"
        if own not in stored:
            raise CheckpointError(f"{tensor.file.path}: tensor {shown(tensor.info.name)} scales nothing")
        views[own] = replace(views[own], factor=_factor(tensor))
    return Renamed(stored, {name: view for name, view in views.items() if view != View()})


def read_factors(
    architecture: Architecture, tensors: Mapping[str, StoredTensor], rotary_dim: int
) -> dict[str, list[float]]:
    """The tensors that belong to the configuration: divisors of the rotary frequencies."""
    result = {}
    for name in sorted(architecture.factors):
        tensor = tensors.get(name + ".weight")
        if tensor is None:
            continue
        where = f"{tensor.file.path}: tensor {shown(tensor.info.name)}"
        if tensor.info.shape != (rotary_dim // 2,):
            raise CheckpointError(f"{where} has shape {list(tensor.info.shape)}, expected [{rotary_dim // 2}]")
        factors: list[float] = tensor.decode(0, tensor.size).tolist()
        if min(factors) <= 0:
            raise CheckpointError(f"{where} holds {min(factors)}, expected above zero")
        result[name] = factors
    return result


def _view(architecture: Architecture, stem: str, tensor: StoredTensor, heads: Heads) -> View:
    shape = tensor.info.shape
    where = f"{tensor.file.path}: tensor {shown(tensor.info.name)} of shape {list(shape)}"
    if stem in architecture.paired:
        if shape[0] % heads.dim:
            raise CheckpointError(f"{where} is not whole heads of {heads.dim} rows")
        # llama.cpp rotates neighbours (0, 1), (2, 3), ...; transformers rotates (0, half), (1, half + 1), ... The
        # rows of q and k are stored so that each is right for its reader.
        return View(axes=(shape[0] // heads.dim, heads.dim // 2, 2), swap=(1, 2))
    if stem in architecture.by_head:
        if shape[0] != 3 * heads.query * heads.dim:
            raise CheckpointError(f"{where} is not q, k and v of {heads.query} heads of {heads.dim} rows")
        return View(axes=(3, heads.query, heads.dim), swap=(0, 1))
    if stem in architecture.transposed and len(shape) == 2:
        return View(transposed=True)
    if architecture.norm_offset and stem.endswith("norm"):
        return View(offset=-architecture.norm_offset)
    return View()


def _split(tensor: StoredTensor, heads: Heads) -> dict[str, StoredTensor]:
    """Rows of q, of k and of v, which lie one after the other."""
    shape = tensor.info.shape
    rows = {"q": heads.query * heads.dim, "k": heads.key_value * heads.dim, "v": heads.key_value * heads.dim}
    if shape[0] != sum(rows.values()) or tensor.type.tail:
        raise CheckpointError(
            f"{tensor.file.path}: tensor {shown(tensor.info.name)} of shape {list(shape)} ({tensor.type.name}) is not "
            f"q, k and v of {heads.query} and {heads.key_value} heads of {heads.dim} rows"
        )
    parts: dict[str, StoredTensor] = {}
    row_bytes, offset = tensor.info.nbytes // shape[0], tensor.offset
    for letter, count in rows.items():
        info = replace(tensor.info, shape=(count, *shape[1:]), nbytes=count * row_bytes)
        parts[letter] = replace(tensor, info=info, offset=offset)
        offset += count * row_bytes
    return parts


def _factor(tensor: StoredTensor) -> float:
    where = f"{tensor.file.path}: tensor {shown(tensor.info.name)}"
    if tensor.size != 1:
        raise CheckpointError(f"{where} has shape {list(tensor.info.shape)}, expected [1]")
    factor = float(tensor.decode(0, 1)[0])
    if factor <= 0:
        raise CheckpointError(f"{where} holds {factor}, expected above zero")
    return factor


def _known(architecture: Architecture, layer: str) -> Iterator[str]:
    """Names that a tensor may have."""
    yield from (f"{name}.weight" for name in (*architecture.top, *architecture.factors))
    yield from (f"blk.{layer}.{name}.weight" for name in architecture.block)
