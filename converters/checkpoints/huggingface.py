"""Hugging Face directories: config.json, safetensors (one file or shards with an index), tokenizer files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from bitnet_onnx.converters._config import Config
from bitnet_onnx.converters.checkpoints._base import Checkpoint, TokenizerFiles
from bitnet_onnx.converters.checkpoints._bitnet_packed import BitNetMatrix, with_bitnet
from bitnet_onnx.converters.checkpoints._decode import StoredTensor
from bitnet_onnx.converters.checkpoints._files import BinaryFile, cache_entry, member, read_small
from bitnet_onnx.converters.checkpoints._safetensors_reader import read_header
from bitnet_onnx.converters.checkpoints._tokenizer_check import check_foreign_tokenizer
from bitnet_onnx.converters.ternary_scheme import ternary_scheme
from bitnet_onnx.errors import CheckpointError, UnsupportedError
from bitnet_onnx.json_input import load_object, shown
from bitnet_onnx.quantized import QuantizedTensor

_log = logging.getLogger(__name__)

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_MAX_CONFIG = 4_000_000
_MAX_INDEX = 8_000_000
_MAX_SHARDS = 1_000
#: Headers of all shards together. The largest models of today have 12 MB of them.
_MAX_HEADERS = 32_000_000
_MAX_TOKENIZER = 40_000_000  # the largest in use has 33 MB
_MAX_TOKENIZER_CONFIG = 8_000_000
_MAX_TEMPLATE = 1_000_000


class HuggingFaceCheckpoint(Checkpoint):
    """A directory as `save_pretrained` writes it, or a snapshot in the Hugging Face cache.

    Packed ternary matrices look like any other: under their name, as `[out, in]`, with the type `BITNET`; their scales
    are part of them.
    """

    format = "safetensors"

    def __init__(self, directory: Path) -> None:
        config = _read_object(directory, "config.json", _MAX_CONFIG)
        if config is None:
            raise CheckpointError(f"{directory}: there is no config.json")
        if "auto_map" in config:
            _log.info("%s: auto_map names code for this checkpoint; it is never run", directory)
        generation_config = _read_object(directory, "generation_config.json", _MAX_CONFIG) or {}
        scheme = ternary_scheme(Config(config))
        with ExitStack() as opened:
            files, stored = _open_weights(directory, opened)
            stored = with_bitnet(stored, scheme)
            opened.pop_all()
        super().__init__(
            path=directory,
            name=_name(directory),
            config=config,
            generation_config=generation_config,
            stored=stored,
            files=files,
        )

    def read_quantized(self, name: str) -> QuantizedTensor | None:
        """Codes and scale of a ternary matrix, None for any other tensor."""
        tensor = self._find(name)
        return tensor.quantized() if isinstance(tensor, BitNetMatrix) else None

    def tokenizer(self) -> TokenizerFiles:
        """The tokenizer's files as they are in the directory, `tokenizer.json` checked by loading it."""
        return directory_tokenizer(self.path, self.config.get("vocab_size"))


def directory_tokenizer(directory: Path, vocab_size: object) -> TokenizerFiles:
    """The tokenizer's files as they are in a directory, `tokenizer.json` checked by loading it.

    Raises:
        CheckpointError: a file is missing, too large or broken, or has ids of `vocab_size` and more.
        UnsupportedError: only a tokenizer.model is there.
    """
    data = read_small(directory, "tokenizer.json", max_bytes=_MAX_TOKENIZER)
    if data is None:
        if member(directory, "tokenizer.model") is not None:
            raise UnsupportedError(
                f"{directory}: tokenizer.model without tokenizer.json; save it once as a fast tokenizer "
                "(AutoTokenizer.from_pretrained(...).save_pretrained(...))"
            )
        raise CheckpointError(f"{directory}: there is no tokenizer.json")
    check_foreign_tokenizer(data, str(directory / "tokenizer.json"), vocab_size)
    files = {"tokenizer.json": data}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        data = read_small(directory, name, max_bytes=_MAX_TOKENIZER_CONFIG)
        if data is not None:
            load_object(data, str(directory / name), max_bytes=_MAX_TOKENIZER_CONFIG, error=CheckpointError)
            files[name] = data
    template = read_small(directory, "chat_template.jinja", max_bytes=_MAX_TEMPLATE)
    if template is not None:
        try:
            template.decode("utf-8")
        except UnicodeDecodeError as error:
            path = directory / "chat_template.jinja"
            raise CheckpointError(f"{path}: byte {error.start} is not UTF-8") from error
        files["chat_template.jinja"] = template
    return TokenizerFiles(files)


def _name(directory: Path) -> str:
    entry = cache_entry(directory)
    return "/".join(entry.name.split("--")[1:]) if entry else directory.resolve().name


def _read_object(directory: Path, name: str, limit: int) -> dict[str, object] | None:
    data = read_small(directory, name, max_bytes=limit)
    return None if data is None else load_object(data, str(directory / name), max_bytes=limit, error=CheckpointError)


def _open_weights(directory: Path, opened: ExitStack) -> tuple[Mapping[str, BinaryFile], Mapping[str, StoredTensor]]:
    single = member(directory, SINGLE)
    if single is not None:  # the index is not looked at then, as everywhere in this ecosystem
        file = opened.enter_context(BinaryFile(single))
        return {SINGLE: file}, read_header(file).tensors

    weight_map = _weight_map(directory)
    files: dict[str, BinaryFile] = {}
    stored: dict[str, StoredTensor] = {}
    room = _MAX_HEADERS
    for name in sorted(set(weight_map.values())):
        path = member(directory, name)
        if path is None:
            raise CheckpointError(f"{directory / INDEX}: shard {shown(name)} is missing")
        files[name] = opened.enter_context(BinaryFile(path))
        header = read_header(files[name], room)
        room -= header.length
        for tensor, place in header.tensors.items():
            if weight_map.get(tensor) != name:
                other = f"has it in {shown(weight_map[tensor])}" if tensor in weight_map else "does not list it"
                raise CheckpointError(f"{path}: holds tensor {shown(tensor)}, but {INDEX} {other}")
            stored[tensor] = place
    for tensor, name in weight_map.items():
        if tensor not in stored:
            raise CheckpointError(f"{directory / name}: tensor {shown(tensor)} is missing, {INDEX} lists it here")
    return files, stored


def _weight_map(directory: Path) -> dict[str, str]:
    index = _read_object(directory, INDEX, _MAX_INDEX)
    source = directory / INDEX
    if index is None:
        raise CheckpointError(f"{directory}: there is neither {SINGLE} nor {INDEX}")
    value = index.get("weight_map")
    if not isinstance(value, dict) or not value or not all(isinstance(name, str) for name in value.values()):
        raise CheckpointError(f"{source}: weight_map must map tensor names to file names")
    shards = set(value.values())
    if len(shards) > _MAX_SHARDS:
        raise CheckpointError(f"{source}: {len(shards)} shards exceed the limit of {_MAX_SHARDS}")
    for name in sorted(shards):
        if not name.endswith(".safetensors"):
            raise CheckpointError(f"{source}: shard {shown(name)} is not a .safetensors file")
    return value
