"""GGUF files: weights, metadata and tokenizer in one file or in several, shown in Hugging Face terms."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from bitnet_onnx.converters.checkpoints._base import Checkpoint, TokenizerFiles
from bitnet_onnx.converters.checkpoints._gguf_architectures import architecture_of
from bitnet_onnx.converters.checkpoints._gguf_config import generation_config, head_dim_of, model_config
from bitnet_onnx.converters.checkpoints._gguf_quantized import read_ternary
from bitnet_onnx.converters.checkpoints._gguf_shards import open_gguf
from bitnet_onnx.converters.checkpoints._gguf_tensors import Heads, View, read_factors, rename
from bitnet_onnx.converters.checkpoints._gguf_tokenizer import tokenizer_files
from bitnet_onnx.converters.checkpoints._types import TERNARY_TYPES
from bitnet_onnx.quantized import FloatArray, QuantizedTensor

_MAX_DISPLAY_NAME: Final = 120
#: Rows between wanted ones that are read along rather than skipped.
_GAP: Final = 64


class GgufCheckpoint(Checkpoint):
    """GGUF files of a known architecture.

    `config` has one key beyond Hugging Face's: `rope_factors`, a list of floats that divide the rotary inverse
    frequencies (this is how a GGUF stores the rope scaling of Llama 3).

    Args:
        path: the file, or any one of the parts of a model.
        i2s_layout: how I2_S tensors are laid out, a key of `I2_S_LAYOUTS`; they are refused without it.
    """

    format = "gguf"

    def __init__(self, path: Path, *, i2s_layout: str | None = None) -> None:
        with ExitStack() as opened:
            content = open_gguf(path, opened, i2s_layout)
            metadata = content.metadata
            architecture = architecture_of(metadata)
            head_dim, rotary_dim = head_dim_of(architecture, metadata)
            section = metadata.section(metadata.text("general.architecture") + ".")
            query = section.integer("attention.head_count")
            heads = Heads(query, section.integer("attention.head_count_kv", query), head_dim, rotary_dim)
            renamed = rename(architecture, metadata, content.tensors, heads)
            infos = {name: tensor.info for name, tensor in renamed.stored.items()}
            factors = read_factors(architecture, content.tensors, rotary_dim)
            config = model_config(architecture, metadata, infos, factors)
            generation = generation_config(metadata)
            opened.pop_all()
        super().__init__(
            path=content.path,
            name=_display_name(metadata.text("general.name", "")) or content.stem,
            config=config,
            generation_config=generation,
            stored=renamed.stored,
            files=content.files,
        )
        self._metadata = metadata
        self._views = renamed.views

    def read(self, name: str) -> FloatArray:
        """A whole tensor as transformers has it."""
        tensor = self._find(name)
        view = self._views.get(name)
        shape = tensor.info.shape
        if view is None:
            return super().read(name)
        if view.transposed:
            return np.ascontiguousarray(tensor.decode(0, tensor.size).reshape(shape[::-1]).T)
        values = tensor.decode(0, tensor.size).reshape(shape)
        if view.axes:
            values = values[view.order()]
        return _scaled(values, view)

    def read_rows(self, name: str, start: int, stop: int) -> FloatArray:
        """Rows of a matrix as transformers has them; those between that the file has elsewhere are read along."""
        view = self._views.get(name)
        if view is None:
            return super().read_rows(name, start, stop)
        self._rows_of(name, start, stop)
        if view.transposed:
            return self.read(name)[start:stop].copy()
        if not view.axes:
            return _scaled(super().read_rows(name, start, stop), view)
        wanted = view.order()[start:stop]
        out = np.empty((stop - start, self.tensors[name].shape[1]), np.float32)
        places = np.argsort(wanted)
        for part in np.split(places, np.flatnonzero(np.diff(wanted[places]) > _GAP) + 1):
            if part.size:
                first, last = int(wanted[part[0]]), int(wanted[part[-1]]) + 1
                out[part] = super().read_rows(name, first, last)[wanted[part] - first]
        return _scaled(out, view)

    def read_quantized(self, name: str) -> QuantizedTensor | None:
        """The codes and scales of a ternary matrix, its rows as transformers has them."""
        tensor = self._find(name)
        view = self._views.get(name, View())
        if tensor.type.name not in TERNARY_TYPES or len(tensor.info.shape) != 2 or view.transposed:
            return None
        codes = read_ternary(tensor)
        if view.axes:
            order = view.order()
            by_row = codes.scale.shape[0] == len(order)
            codes = replace(codes, raw=codes.raw[order], scale=codes.scale[order] if by_row else codes.scale)
        return replace(codes, scale=_scaled(codes.scale, view))

    def tokenizer(self) -> TokenizerFiles:
        """A tokenizer.json, tokenizer_config.json and special_tokens_map.json made from the metadata."""
        return tokenizer_files(self._metadata)


def _scaled(values: npt.NDArray[np.float32], view: View) -> FloatArray:
    """Factor and offset of a view, in place."""
    if view.factor != 1:
        values *= np.float32(view.factor)
    if view.offset:
        values += np.float32(view.offset)
    return values


def _display_name(text: str) -> str:
    """A name for terminals and manifests: one line without control characters."""
    return "".join(character for character in text if character.isprintable())[:_MAX_DISPLAY_NAME].strip()
