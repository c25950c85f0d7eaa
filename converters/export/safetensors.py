"""A Hugging Face directory: weights as floats, or ternary ones packed as transformers' `bitnet` quantization has them.

Packed: a matrix `X.weight` of `[out, in]` is U8 `[out / 4, in]`, its rows in four quarters: `byte[r, c]` holds
`code + 1` of row `r + i * out / 4` in bits `2i`; `X.weight_scale` multiplies (`linear_class` `autobitlinear`). A bias
is stored divided by it, because transformers adds it before the scale. Source: `integrations/bitnet.py` there.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from bitnet_onnx.converters._config import Config
from bitnet_onnx.converters.export._floats import FloatType, Rounding, encode
from bitnet_onnx.converters.export._result import Written
from bitnet_onnx.converters.export._safetensors_file import SHARD_BYTES, Tensor, write_safetensors
from bitnet_onnx.converters.export._stored import StoredForm, stored_forms
from bitnet_onnx.converters.export._ternary import masters_note, single_scale
from bitnet_onnx.converters.families import find
from bitnet_onnx.converters.model import SourceModel
from bitnet_onnx.converters.ternary_scheme import ternary_scheme
from bitnet_onnx.errors import UnsupportedError
from bitnet_onnx.json_input import shown
from bitnet_onnx.package_format import CONFIG, GENERATION_CONFIG
from bitnet_onnx.quantized import ByteArray, FloatArray

CODES_PER_BYTE: Final = 4
_DTYPES: Final = {FloatType.FLOAT32: "F32", FloatType.BFLOAT16: "BF16", FloatType.FLOAT16: "F16"}


class Layout(enum.StrEnum):
    """How the matrices of the blocks are written."""

    #: packed where all of them can be, else dense
    AUTO = "auto"
    PACKED = "packed"
    DENSE = "dense"


@dataclass(frozen=True, slots=True)
class _Writer:
    """Turns the tensors of one model into those of the file.

    Attributes:
        model: the source.
        dtype: of floats.
        scales: of the packed matrices by the name of their module; empty for a dense export.
        rounding: of floats.
        biases: of biases that are divided by a scale.
    """

    model: SourceModel
    dtype: FloatType
    scales: Mapping[str, np.float32]
    rounding: Rounding
    biases: Rounding

    def tensors(self, forms: list[StoredForm]) -> Iterator[Tensor]:
        for form in forms:
            module, _, kind = form.name.rpartition(".")
            scale = self.scales.get(module)
            if scale is None:
                yield Tensor(form.name, _DTYPES[self.dtype], form.shape, self._floats(form))
            elif kind == "bias":
                yield Tensor(form.name, "F32", form.shape, self._divided(form, scale))
            elif kind == "weight":
                rows, columns = form.shape
                yield Tensor(form.name, "U8", (rows // CODES_PER_BYTE, columns), self._packed(form))
                # Never in fewer bits: the scale is what makes a code a weight.
                yield Tensor(f"{module}.weight_scale", "F32", (1,), _constant(np.array([scale], "<f4").tobytes()))

    def _floats(self, form: StoredForm) -> Callable[[], Iterator[bytes]]:
        def content() -> Iterator[bytes]:
            for values in form.floats(self.model.tensors):
                yield encode(values, self.dtype, form.name, self.rounding)

        return content

    def _packed(self, form: StoredForm) -> Callable[[], Iterator[bytes]]:
        def content() -> Iterator[bytes]:
            tensor = form.ternary(self.model.tensors)
            if tensor is None:
                raise RuntimeError(f"{form.name} was ternary a moment ago")
            yield _pack(tensor.raw).tobytes()

        return content

    def _divided(self, form: StoredForm, scale: np.float32) -> Callable[[], Iterator[bytes]]:
        def content() -> Iterator[bytes]:
            for bias in form.floats(self.model.tensors):
                divided = _divide(bias, scale)
                self.biases.add(bias, divided * scale)
                yield divided.astype("<f4", copy=False).tobytes()

        return content


def write_directory(
    work: Path,
    model: SourceModel,
    *,
    layout: Layout,
    dtype: FloatType,
    shard_bytes: int = SHARD_BYTES,
    written: Written | None = None,
) -> tuple[str, tuple[str, ...]]:
    """Write a Hugging Face directory into an empty one.

    Args:
        work: the empty directory.
        model: what to write.
        layout: of the matrices of the blocks.
        dtype: of everything that is not packed.
        shard_bytes: of one weight file.
        written: called after each tensor.

    Returns:
        How the matrices are stored, and what differs from the source.

    Raises:
        UnsupportedError: a matrix cannot be packed, or a value does not fit `dtype`.
    """
    config = Config(model.config)
    family, scheme = find(config), ternary_scheme(config)
    forms = stored_forms(family, model.spec)
    online = scheme is not None and scheme.online and model.format != "package"
    scales: dict[str, np.float32] = {}
    if layout is not Layout.DENSE:
        try:
            scales = _scales(model, forms)
        except UnsupportedError:
            if layout is Layout.PACKED:
                raise
    if not scales and model.spec.linear_norm_epsilon is not None and not online:
        raise UnsupportedError(
            f"{model.path}: a norm stands inside each linear layer, which a directory of dense weights cannot say; "
            f"choose --format packed or --to onnx"
        )
    writer = _Writer(model, dtype, scales, Rounding(), Rounding())
    write_safetensors(work, list(writer.tensors(forms)), shard_bytes=shard_bytes, written=written)
    documents = {CONFIG: _config(model, forms, scales, dtype, keep_scheme=online and not scales)}
    if model.generation_config:
        documents[GENERATION_CONFIG] = dict(model.generation_config)
    for name, document in documents.items():
        (work / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    for name, content in model.tokenizer.items():
        (work / name).write_bytes(content)
    packed = [role.removesuffix(".weight") for form in forms if form.module in scales for role, _ in form.parts]
    losses = (
        *masters_note(model.tensors, packed),
        writer.rounding.sentence("floats", str(dtype)),
        writer.biases.sentence("biases", "multiples of a scale"),
    )
    return _words(scales, dtype), tuple(loss for loss in losses if loss is not None)


def _words(scales: Mapping[str, np.float32], dtype: FloatType) -> str:
    return f"blocks packed ternary (2 bits a weight), the rest {dtype}" if scales else f"dense {dtype}"


def _scales(model: SourceModel, forms: list[StoredForm]) -> dict[str, np.float32]:
    """The scale of each matrix of the blocks by module.

    Raises:
        UnsupportedError: one cannot be packed.
    """
    scales: dict[str, np.float32] = {}
    for form in forms:
        if not form.is_linear:
            continue
        why, scale = None, None
        rows = form.shape[0]
        if form.transposed:
            why = "is stored transposed, which transformers' BitNet layers do not read"
        elif rows % CODES_PER_BYTE:
            why = f"has {rows} rows: four of them share a byte, so that their number must be a multiple of 4"
        else:
            tensor = form.ternary(model.tensors)
            scale = None if tensor is None else single_scale(tensor)
            if tensor is None:
                why = "is not ternary"
            elif scale is None:
                why = "has several scales, and the format one a matrix"
            elif not scale > 0:
                why = f"has the scale {scale}, which must be greater than zero"
        if why is not None or scale is None:
            raise UnsupportedError(
                f"{model.path}: tensor {shown(form.name)} cannot be packed: it {why}; choose --format dense, which "
                f"takes any weights without loss"
            )
        scales[form.module] = scale
    return scales


def _config(
    model: SourceModel,
    forms: list[StoredForm],
    scales: Mapping[str, np.float32],
    dtype: FloatType,
    *,
    keep_scheme: bool,
) -> dict[str, object]:
    """config.json of what is written: that of the source but for how weights are stored."""
    config = {name: value for name, value in model.config.items() if name not in {"dtype", "rope_factors"}}
    config["torch_dtype"] = str(dtype)
    factors = model.config.get("rope_factors")
    if factors:
        # A GGUF has the divisors of the frequencies and not the rule behind them; this is the rule that takes divisors.
        config["rope_scaling"] = {
            "rope_type": "longrope",
            "long_factor": factors,
            "short_factor": factors,
            "attention_factor": 1.0,
            "original_max_position_embeddings": model.spec.context_length,
        }
    if not keep_scheme:
        config.pop("quantization_config", None)
    if scales:
        kept = [form.module for form in forms if len(form.shape) == 2 and form.module not in scales]
        config["quantization_config"] = bitnet_scheme("offline", kept, model.spec.linear_norm_epsilon)
    return config


def bitnet_scheme(mode: str, dense: Iterable[str], linear_norm_epsilon: float | None) -> dict[str, object]:
    """The `quantization_config` of transformers' `bitnet`.

    Args:
        mode: `offline` for codes, `online` for masters.
        dense: modules with a matrix that is not ternary.
        linear_norm_epsilon: see `DecoderSpec`.
    """
    kept = [module for module in dict.fromkeys(["lm_head", *dense]) if not module.endswith("embed_tokens")]
    scheme: dict[str, object] = {
        "quant_method": "bitnet",
        "linear_class": "autobitlinear",
        "quantization_mode": mode,
        "modules_to_not_convert": kept,
    }
    if linear_norm_epsilon is not None:
        scheme |= {"use_rms_norm": True, "rms_norm_eps": linear_norm_epsilon}
    return scheme


def _pack(raw: ByteArray) -> ByteArray:
    """Codes 1, 2, 3 `[out, in]` -> bytes `[out / 4, in]`."""
    quarters = (raw - np.uint8(1)).reshape(CODES_PER_BYTE, -1, raw.shape[1])
    packed: ByteArray = quarters[0].copy()
    for index in range(1, CODES_PER_BYTE):
        packed |= quarters[index] << np.uint8(2 * index)
    return packed


def _divide(bias: FloatArray, scale: np.float32) -> FloatArray:
    """The float32 whose product with `scale` comes nearest to `bias`."""
    best = bias / scale
    for neighbour in (np.nextafter(best, np.float32(np.inf)), np.nextafter(best, np.float32(-np.inf))):
        nearer = np.abs(neighbour * scale - bias) < np.abs(best * scale - bias)
        best = np.where(nearer, neighbour, best)
    return best.astype(np.float32, copy=False)


def _constant(data: bytes) -> Callable[[], Iterator[bytes]]:
    return lambda: iter([data])
