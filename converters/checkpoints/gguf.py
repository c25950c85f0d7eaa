"""GGUF files: one file with weights, metadata and tokenizer, shown in Hugging Face terms."""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bitnet_onnx.converters.checkpoints._base import Checkpoint, TokenizerFiles
from bitnet_onnx.converters.checkpoints._decode import StoredTensor
from bitnet_onnx.converters.checkpoints._files import BinaryFile
from bitnet_onnx.converters.checkpoints._gguf_config import (
    ROPE_FACTORS,
    Architecture,
    architecture_of,
    generation_config,
    head_dim_of,
    model_config,
)
from bitnet_onnx.converters.checkpoints._gguf_reader import GgufContent, read_gguf
from bitnet_onnx.converters.checkpoints._gguf_tokenizer import tokenizer_files
from bitnet_onnx.errors import CheckpointError, UnsupportedError
from bitnet_onnx.json_input import shown

_TOP_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_MAX_DISPLAY_NAME = 120
_BLOCK_NAME = re.compile(r"blk\.(0|[1-9][0-9]{0,5})\.([a-z_]+)\.(weight|bias)")


class GgufCheckpoint(Checkpoint):
    """A GGUF file of a known architecture.

    `config` has one key beyond Hugging Face's: `rope_factors`, a list of floats that divide the rotary inverse
    frequencies (this is how a GGUF stores the rope scaling of Llama 3).
    """

    format = "gguf"

    def __init__(self, path: Path) -> None:
        with ExitStack() as opened:
            file = opened.enter_context(BinaryFile(path))
            content = read_gguf(file)
            metadata = content.metadata
            architecture = architecture_of(metadata)
            stored, paired = _rename(architecture, content)
            head_dim = head_dim_of(metadata)
            config = model_config(architecture, metadata, {name: tensor.info for name, tensor in stored.items()})
            for name in paired:
                if stored[name].info.shape[0] % head_dim:
                    raise CheckpointError(
                        f"{path}: tensor {shown(name)} of shape {list(stored[name].info.shape)} is not whole heads of "
                        f"{head_dim} rows"
                    )
            if ROPE_FACTORS in content.tensors:
                config["rope_factors"] = _rope_factors(content.tensors[ROPE_FACTORS], head_dim)
            generation = generation_config(metadata)
            opened.pop_all()
        super().__init__(
            path=path,
            name=_display_name(metadata.text("general.name", "")) or path.stem,
            config=config,
            generation_config=generation,
            stored=stored,
            files={path.name: file},
        )
        self._metadata = metadata
        self._paired = paired
        self._head_dim = head_dim

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """A whole tensor; rows of q and k stand as Hugging Face has them."""
        array = super().read(name)
        return _unpair(array, self._head_dim) if name in self._paired else array

    def read_rows(self, name: str, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Rows of a matrix; rows of q and k stand as Hugging Face has them, whole heads are read for them."""
        if name not in self._paired:
            return super().read_rows(name, start, stop)
        self._rows_of(name, start, stop)
        first = start // self._head_dim * self._head_dim
        last = -(-stop // self._head_dim) * self._head_dim
        heads = _unpair(super().read_rows(name, first, last), self._head_dim)
        return heads[start - first : stop - first].copy()

    def tokenizer(self) -> TokenizerFiles:
        """A tokenizer.json, tokenizer_config.json and special_tokens_map.json made from the metadata."""
        return tokenizer_files(self._metadata)


def _display_name(text: str) -> str:
    """A name for terminals and manifests: one line without control characters."""
    return "".join(character for character in text if character.isprintable())[:_MAX_DISPLAY_NAME].strip()


def _rename(architecture: Architecture, content: GgufContent) -> tuple[dict[str, StoredTensor], frozenset[str]]:
    """The tensors under their Hugging Face names, and the names of those with rows in rotary pairs."""
    source = content.metadata.source
    layers = content.metadata.integer(content.metadata.text("general.architecture") + ".block_count")
    stored: dict[str, StoredTensor] = {}
    paired: set[str] = set()
    for name, tensor in content.tensors.items():
        if name == ROPE_FACTORS:
            continue
        target = _TOP_TENSORS.get(name)
        match = _BLOCK_NAME.fullmatch(name)
        if match and match[2] in architecture.block_tensors:
            if int(match[1]) >= layers:
                raise CheckpointError(f"{source}: tensor {shown(name)}, but block_count is {layers}")
            target = f"model.layers.{match[1]}.{architecture.block_tensors[match[2]]}.{match[3]}"
            if match[2] in architecture.paired:
                paired.add(target)
        if target is None:
            raise UnsupportedError(f"{source}: tensor {shown(name)} is not known in a {architecture.model_type} model")
        stored[target] = replace(tensor, info=replace(tensor.info, name=target))
    return stored, frozenset(paired)


def _rope_factors(tensor: StoredTensor, head_dim: int) -> list[float]:
    where = f"{tensor.file.path}: tensor {ROPE_FACTORS!r}"
    if tensor.info.shape != (head_dim // 2,):
        raise CheckpointError(f"{where} has shape {list(tensor.info.shape)}, expected [{head_dim // 2}]")
    factors: list[float] = tensor.decode(0, tensor.size).tolist()
    if min(factors) <= 0:
        raise CheckpointError(f"{where} holds {min(factors)}, expected above zero")
    return factors


def _unpair(array: npt.NDArray[np.float32], head_dim: int) -> npt.NDArray[np.float32]:
    """Rows in rotary pairs to rows in halves, head by head.

    llama.cpp rotates neighbours (0, 1), (2, 3), ...; Hugging Face rotates (0, half), (1, half + 1), ... The rows
    of q and k are stored so that each is right for its reader.
    """
    pairs = array.reshape(-1, head_dim // 2, 2, *array.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(array.shape)
