"""A GGUF file: ternary matrices as TQ2_0 or TQ1_0 with their very codes, other matrices as floats."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import gguf
import numpy as np
import numpy.typing as npt

from bitnet_onnx.converters.checkpoints._base import TensorInfo
from bitnet_onnx.converters.checkpoints._files import BinaryFile
from bitnet_onnx.converters.checkpoints._gguf_metadata import Value
from bitnet_onnx.converters.checkpoints._gguf_reader import read_gguf
from bitnet_onnx.converters.checkpoints._gguf_tensors import View
from bitnet_onnx.converters.export._floats import FloatType, Rounding, encode
from bitnet_onnx.converters.export._gguf_metadata import (
    GgufArchitecture,
    architecture_for,
    check_says_all,
    metadata_of,
)
from bitnet_onnx.converters.export._gguf_ternary import GgufTernary, block_scales, pack_blocks
from bitnet_onnx.converters.export._gguf_tokenizer import tokenizer_metadata
from bitnet_onnx.converters.export._result import Written
from bitnet_onnx.converters.export._stored import StoredForm, stored_forms
from bitnet_onnx.converters.export._ternary import masters_note, single_scale
from bitnet_onnx.converters.model import SourceModel
from bitnet_onnx.errors import BitnetOnnxError, UnsupportedError
from bitnet_onnx.json_input import shown
from bitnet_onnx.quantized import FloatArray, QuantizedTensor

#: In `general.quantized_by` of what was written here.
PRODUCER: Final = "bitnet-onnx"
#: Of a scale as float16; beyond it, where float16 has hardly any digits left, a matrix is written as floats.
_MOST_ROUNDING: Final = 1e-3
_FLOATS: Final = {
    FloatType.FLOAT32: gguf.GGMLQuantizationType.F32,
    FloatType.FLOAT16: gguf.GGMLQuantizationType.F16,
    FloatType.BFLOAT16: gguf.GGMLQuantizationType.BF16,
}
_TERNARY: Final = {
    GgufTernary.TQ2_0: gguf.GGMLQuantizationType.TQ2_0,
    GgufTernary.TQ1_0: gguf.GGMLQuantizationType.TQ1_0,
    GgufTernary.Q4_0: gguf.GGMLQuantizationType.Q4_0,
}
_FILE_TYPES: Final = {
    GgufTernary.TQ2_0: gguf.LlamaFileType.MOSTLY_TQ2_0,
    GgufTernary.TQ1_0: gguf.LlamaFileType.MOSTLY_TQ1_0,
    GgufTernary.Q4_0: gguf.LlamaFileType.MOSTLY_Q4_0,
}
_FLOAT_FILE_TYPES: Final = {
    FloatType.FLOAT32: gguf.LlamaFileType.ALL_F32,
    FloatType.FLOAT16: gguf.LlamaFileType.MOSTLY_F16,
    FloatType.BFLOAT16: gguf.LlamaFileType.MOSTLY_BF16,
}
#: bitnet.cpp's architecture has the tensors of the one that the `gguf` package lists.
_LISTED: Final = {"bitnet-b1.58": "bitnet"}

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _Planned:
    """A tensor to write: name, type, shape, size, and what gives its bytes."""

    name: str
    type: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    nbytes: int
    content: Callable[[], Bytes]


def write_gguf(
    path: Path,
    model: SourceModel,
    *,
    ternary: GgufTernary,
    dtype: FloatType = FloatType.FLOAT16,
    tokenizer: bool = True,
    written: Written | None = None,
) -> tuple[str, tuple[str, ...]]:
    """Write a GGUF file; no more than one tensor is in memory.

    Args:
        path: the file to create.
        model: what to write.
        ternary: type of ternary matrices whose rows are whole blocks of 256; others are Q4_0, in blocks of 32.
        dtype: of all other matrices; vectors and the table of positions are float32.
        tokenizer: the file carries the tokenizer.
        written: called after each tensor.

    Returns:
        How the matrices are stored, and what differs from the source.

    Raises:
        UnsupportedError: GGUF has no word for something that the model has.
    """
    architecture = architecture_for(model)
    forms = stored_forms(architecture.family, model.spec)
    own, extra = metadata_of(model, architecture)
    values: dict[str, Value] = {"general.architecture": architecture.name, **own}
    losses: list[str] = []
    if tokenizer:
        words, losses = tokenizer_metadata(model)
        values |= words
    else:
        values["tokenizer.ggml.model"] = "none"
    check_says_all(model, architecture, values, extra, _infos(forms))
    planner = _Planner(model, architecture, ternary, dtype)
    planned = [_vector(f"{name}.weight", array) for name, array in extra.items()]
    for form in forms:
        planned += planner.plan(form)
    _check_tensors(model, architecture, planned)
    kinds = planner.ternary.most_common(1)
    file_type = _FILE_TYPES[kinds[0][0]] if kinds else _FLOAT_FILE_TYPES[dtype]
    values |= {
        "general.name": model.name,
        "general.quantized_by": PRODUCER,
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        "general.file_type": int(file_type),
    }
    _write(path, architecture.name, values, planned, written)
    for what, kind, rounding in (
        ("scales", "float16", planner.scale_rounding),
        ("matrices", str(dtype), planner.rounding),
    ):
        sentence = rounding.sentence(what, kind)
        losses += [sentence] if sentence else []
    losses += masters_note(model.tensors, planner.ternary_roles) + planner.notes
    # Upstream has the same tensors under another activation, and would not know that this is another model.
    readers = ", read by bitnet.cpp and not by llama.cpp" if architecture.name in _LISTED else ""
    return f"architecture {architecture.name}{readers}; {planner.words()}", tuple(losses)


def is_gguf_export(path: Path) -> bool:
    """Whether a file is a GGUF that was written here."""
    try:
        with BinaryFile(path) as file:
            return read_gguf(file).metadata.text("general.quantized_by", "") == PRODUCER
    except BitnetOnnxError:
        return False


class _Planner:
    """Decides the type of each tensor; matrices that may be ternary are read for it, and again when they are written.

    Args:
        model: the source.
        architecture: names and layouts.
        ternary: type of ternary matrices.
        dtype: of other matrices.
    """

    def __init__(
        self, model: SourceModel, architecture: GgufArchitecture, ternary: GgufTernary, dtype: FloatType
    ) -> None:
        self._model = model
        self._row = architecture.row
        self._kinds = (ternary, GgufTernary.Q4_0)
        self._dtype = dtype
        self._names = {target: name for name, target in self._row.block.items() if "{}" not in target}
        self._top = {target: name for name, target in self._row.top.items()}
        self.rounding, self.scale_rounding = Rounding(), Rounding()
        self.notes: list[str] = []
        #: How many matrices got which type.
        self.ternary = Counter[GgufTernary]()
        self.ternary_roles: list[str] = []
        self._float_linears = 0

    def words(self) -> str:
        """How the matrices of the blocks are stored."""
        parts = [f"{count} ternary matrices as {kind.upper()}" for kind, count in self.ternary.most_common()]
        if self._float_linears or not parts:
            parts.append(f"{self._float_linears} matrices of the blocks as {self._dtype}")
        return ", ".join(parts)

    def plan(self, form: StoredForm) -> list[_Planned]:
        """The tensors that one of transformers becomes."""
        name, stem = self._name(form)
        shape = form.shape[::-1] if form.transposed else form.shape
        if len(shape) == 1 or stem == "position_embd":
            return [self._float(form, name, stem, shape, FloatType.FLOAT32)]
        if form.is_linear:
            found = self._plan_ternary(form, name, stem)
            if found is not None:
                return found
            self._float_linears += 1
        return [self._float(form, name, stem, shape, self._dtype)]

    def _plan_ternary(self, form: StoredForm, name: str, stem: str) -> list[_Planned] | None:
        """A matrix whose codes are what is written, in whichever type; None where it is not ternary."""
        tensor = form.ternary(self._model.tensors)
        if tensor is None:
            return None
        self.ternary_roles += [role.removesuffix(".weight") for role, _ in form.parts]
        extra: list[_Planned] = []
        single = single_scale(tensor) if self._row.scales else None
        beside = single is not None and single > 0
        if beside:
            # A scale beside the matrix is a float32: nothing is rounded.
            extra = [_vector(name.removesuffix("weight") + "scale", np.array([single], np.float32))]
        kind = next((kind for kind in self._kinds if kind.fits(tensor)), None)
        if kind is None:
            self._note(f"ternary matrices with rows of {tensor.shape[1]} as {self._dtype}: the blocks of Q4_0 have 32")
        elif not beside and not self._round_scales(block_scales(tensor, kind)):
            self._note(f"ternary matrices with scales beyond float16 as {self._dtype}")
            kind = None
        rows, columns = tensor.shape

        def again() -> QuantizedTensor:
            codes = form.ternary(self._model.tensors)
            if codes is None:
                raise RuntimeError(f"{form.name} was ternary a moment ago")
            if beside:
                codes = QuantizedTensor(codes.raw, np.ones(1, np.float32), codes.grid)
            order = self._order(stem, rows)
            if order is None:
                return codes
            return QuantizedTensor(codes.raw[order], codes.with_row_scales().scale[order], codes.grid)

        if kind is None:
            self._float_linears += 1

            def values() -> Bytes:
                data = encode(again().dequantize(), self._dtype, form.name, self.rounding)
                return np.frombuffer(data, np.uint8)

            size = rows * columns * self._dtype.nbytes
            return [_Planned(name, _FLOATS[self._dtype], (rows, columns), size, values), *extra]
        self.ternary[kind] += 1

        def content() -> Bytes:
            codes = again()
            return pack_blocks(codes, block_scales(codes, kind).astype(np.float16), kind)

        size = rows * columns // kind.block * kind.block_bytes
        return [_Planned(name, _TERNARY[kind], (rows, columns), size, content), *extra]

    def _round_scales(self, scales: FloatArray) -> bool:
        """Take the rounding of scales to float16 into account, if that type has room for them."""
        with np.errstate(over="ignore"):
            wide = scales.astype(np.float16).astype(np.float32)
        if not np.isfinite(wide).all() or bool((np.abs(wide - scales) > _MOST_ROUNDING * np.abs(scales)).any()):
            return False
        self.scale_rounding.add(np.ascontiguousarray(scales), wide)
        return True

    def _float(self, form: StoredForm, name: str, stem: str, shape: tuple[int, ...], dtype: FloatType) -> _Planned:
        count = int(np.prod(shape))
        rounding = Rounding() if len(shape) == 1 else self.rounding

        def content() -> Bytes:
            data = np.empty(count * dtype.nbytes, np.uint8)
            done = 0
            order = self._order(stem, shape[0])
            for values in form.floats(self._model.tensors):
                rows = np.ascontiguousarray(values.T) if form.transposed else values
                if self._row.norm_offset and stem.endswith("norm"):
                    rows = rows + np.float32(self._row.norm_offset)
                piece = encode(rows, dtype, form.name, rounding)
                data[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
                done += len(piece)
            if order is not None:
                data = data.reshape(shape[0], -1)[order].reshape(-1)
            return data

        return _Planned(name, _FLOATS[dtype], shape, count * dtype.nbytes, content)

    def _name(self, form: StoredForm) -> tuple[str, str]:
        """The name of a tensor in a GGUF, and the part of it that says what it is."""
        module, _, kind = form.name.rpartition(".")
        if module in self._top:
            return f"{self._top[module]}.{kind}", self._top[module]
        layer, _, rest = module.removeprefix(f"{self._row.layers}.").partition(".")
        if module.startswith(self._row.layers) and layer.isdecimal() and rest in self._names:
            return f"blk.{layer}.{self._names[rest]}.{kind}", self._names[rest]
        raise UnsupportedError(
            f"{self._model.path}: tensor {shown(form.name)} has no place in a GGUF of this architecture; "
            f"choose --to safetensors"
        )

    def _order(self, stem: str, rows: int) -> npt.NDArray[np.intp] | None:
        """For each row of the GGUF, which row of transformers it is; None where they are the same."""
        spec = self._model.spec
        if stem in self._row.paired:
            view = View(axes=(rows // spec.head_dim, spec.head_dim // 2, 2), swap=(1, 2))
        elif stem in self._row.by_head:
            view = View(axes=(3, spec.num_attention_heads, spec.head_dim), swap=(0, 1))
        else:
            return None
        return np.argsort(view.order())

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _vector(name: str, values: FloatArray) -> _Planned:
    return _Planned(name, gguf.GGMLQuantizationType.F32, values.shape, values.nbytes, lambda: values.view(np.uint8))


def _infos(forms: list[StoredForm]) -> dict[str, TensorInfo]:
    return {form.name: TensorInfo(form.name, form.shape, "F32", 0, "") for form in forms}


def _check_tensors(model: SourceModel, architecture: GgufArchitecture, planned: list[_Planned]) -> None:
    """Whether readers expect each tensor: they refuse a file with others."""
    listed = _LISTED.get(architecture.name, architecture.name)
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == listed)
    allowed = {gguf.TENSOR_NAMES[key].replace("blk.{bid}.", "") for key in gguf.MODEL_TENSORS[kind]}
    for tensor in planned:
        stem = tensor.name.rpartition(".")[0]
        if stem.startswith("blk."):
            stem = stem.split(".", 2)[2]
        if stem not in allowed:
            raise UnsupportedError(
                f"{model.path}: GGUF files of architecture {architecture.name!r} have no tensor {shown(tensor.name)}; "
                f"choose --to safetensors"
            )


def _write(
    path: Path, architecture: str, values: Mapping[str, Value], planned: list[_Planned], written: Written | None
) -> None:
    with closing(gguf.GGUFWriter(path, architecture)) as writer:
        for key, value in values.items():
            _add(writer, key, value)
        for tensor in planned:
            writer.add_tensor_info(
                tensor.name, _byte_shape(tensor), np.dtype(np.uint8), tensor.nbytes, raw_dtype=tensor.type
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        done, total = 0, sum(math.prod(tensor.shape) for tensor in planned)
        for tensor in planned:
            writer.write_tensor_data(tensor.content())
            done += math.prod(tensor.shape)
            if written is not None:
                written(done, total, tensor.name)


def _byte_shape(tensor: _Planned) -> tuple[int, ...]:
    """The shape in bytes, as the writer wants it of raw data."""
    block, size = gguf.GGML_QUANT_SIZES[tensor.type]
    return (*tensor.shape[:-1], tensor.shape[-1] // block * size)


def _add(writer: gguf.GGUFWriter, key: str, value: Value) -> None:
    if key == "general.architecture":
        return  # the writer's own
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
