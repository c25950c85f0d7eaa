"""Opening a package directory: every number is read and checked before anything is allocated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from bitnet_onnx.errors import PackageError
from bitnet_onnx.package_checks import check_versions, misplaced_package
from bitnet_onnx.package_format import (
    CHAT_TEMPLATE,
    CONFIG,
    COREML_SUFFIX,
    ENGINE,
    GENERATION_CONFIG,
    MANIFEST,
    MODEL,
    MODEL_DATA,
    TOKENIZER,
    TOKENIZER_CONFIG,
    Operators,
)
from bitnet_onnx.runtime._json import decode_utf8, read_bytes, read_object

_REQUIRED = (MODEL, MODEL_DATA, TOKENIZER, TOKENIZER_CONFIG, CONFIG, GENERATION_CONFIG)
#: protobuf cannot hold more.
_MAX_GRAPH_BYTES = 2**31 - 1
MAX_TOKENIZER_BYTES = 64 * 2**20
_MAX_TEMPLATE_BYTES = 2**20
_MAX_STOP_IDS = 64
#: Far above any decoder in use (about 5 MB), far below what one hostile number could ask for.
_MAX_CACHE_BYTES_PER_TOKEN = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Architecture:
    """The sizes that the runtime needs: those of the KV cache, the vocabulary and the context in tokens."""

    num_hidden_layers: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    context_length: int

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes of float32 keys and values of one token over all layers."""
        return self.cache_bytes_of(np.dtype(np.float32))

    def cache_bytes_of(self, element: np.dtype[Any]) -> int:
        """Bytes of keys and values of one token over all layers, held as `element`."""
        return self.num_hidden_layers * 2 * self.num_key_value_heads * self.head_dim * element.itemsize


_LIMITS = {
    "num_hidden_layers": 4096,
    "num_key_value_heads": 4096,
    "head_dim": 4096,
    "vocab_size": 2**24,
    "context_length": 2**26,
}


@dataclass(frozen=True, slots=True)
class PackageInfo:
    """A package directory whose files exist and whose manifest was checked.

    `operators` are what the graph is written in and `operator_version` the oldest version of ours that runs it,
    `eos_token_ids` are those of generation_config.json, `special_tokens` the named ones (bos_token, ...) of
    tokenizer_config.json.
    """

    directory: Path
    operator_version: int
    architecture: Architecture
    eos_token_ids: tuple[int, ...]
    special_tokens: Mapping[str, str]
    add_bos_token: bool
    chat_template: str | None
    operators: Operators = Operators.BITNET

    @property
    def model_path(self) -> Path:
        """The ONNX graph."""
        return self.directory / MODEL

    @property
    def engine_path(self) -> Path | None:
        """The graph that gives the logits of some positions only, if the package has it."""
        path = self.directory / ENGINE
        return path if path.is_file() else None

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer in the format of the `tokenizers` library."""
        return self.directory / TOKENIZER

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Reads and checks a package; the weights stay on disk.

        Raises:
            PackageError: the directory is no package of ours, or one of its files is missing, points out of
                the directory, or contradicts itself.
        """
        directory = Path(path)
        if misplaced := misplaced_package(directory):
            raise PackageError(misplaced)
        if not directory.is_dir():
            raise PackageError(f"{directory}: no such directory")
        if directory.suffix == COREML_SUFFIX:
            raise PackageError(
                f"{directory} is a Core ML package, for applications on Apple's systems: convert its checkpoint "
                f"without --to coreml to run it here"
            )
        if not (directory / MANIFEST).exists():
            raise PackageError(
                f"{directory} is not a bitnet-onnx package: no {MANIFEST}; "
                f"convert a checkpoint first with `bitnet-onnx convert SRC OUT`"
            )
        _check_files(directory)
        operator_version, architecture, operators = _read_manifest(directory / MANIFEST)
        tokenizer_config = directory / TOKENIZER_CONFIG
        config = read_object(tokenizer_config)
        return cls(
            directory=directory,
            operator_version=operator_version,
            architecture=architecture,
            eos_token_ids=_read_eos_ids(directory / GENERATION_CONFIG, architecture.vocab_size),
            special_tokens=special_tokens_of(config, tokenizer_config),
            add_bos_token=config.get("add_bos_token") is True,
            chat_template=_read_template(config, directory),
            operators=operators,
        )


def _check_files(directory: Path) -> None:
    root = directory.resolve()
    for name in (MANIFEST, *_REQUIRED):
        path = directory / name
        if not path.is_file():
            raise PackageError(
                f"{directory}: {name} is missing or not a regular file; copy the package's whole directory, or convert "
                f"the checkpoint again"
            )
        if not path.resolve().is_relative_to(root):
            raise PackageError(f"{path}: a link that leaves the package ({path.resolve()}); copy the file instead")
    engine = directory / ENGINE
    if engine.is_symlink() and not engine.resolve().is_relative_to(root):
        raise PackageError(f"{engine}: a link that leaves the package ({engine.resolve()}); copy the file instead")
    for name, limit in ((MODEL, _MAX_GRAPH_BYTES), (TOKENIZER, MAX_TOKENIZER_BYTES)):
        size = (directory / name).stat().st_size
        if not 0 < size <= limit:
            raise PackageError(f"{directory / name}: {size} bytes, expected 1 to {limit}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _read_manifest(path: Path) -> tuple[int, Architecture, Operators]:
    manifest = read_object(path)
    operator_version = check_versions(manifest, path)
    fields = manifest.get("architecture")
    if not isinstance(fields, dict):
        raise PackageError(f"{path}: no object `architecture`; convert the checkpoint again")
    sizes: dict[str, int] = {}
    for name, limit in _LIMITS.items():
        value = fields.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
            raise PackageError(f"{path}: architecture.{name} is {value!r:.40}, expected an integer from 1 to {limit}")
        sizes[name] = value
    architecture = Architecture(**sizes)
    if architecture.cache_bytes_per_token > _MAX_CACHE_BYTES_PER_TOKEN:
        raise PackageError(
            f"{path}: architecture asks for {architecture.cache_bytes_per_token} bytes of cache a token, "
            f"above the limit of {_MAX_CACHE_BYTES_PER_TOKEN}"
        )
    return operator_version, architecture, Operators.of(manifest, path)


def _read_eos_ids(path: Path, vocab_size: int) -> tuple[int, ...]:
    value = read_object(path).get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if len(ids) > _MAX_STOP_IDS:
        raise PackageError(f"{path}: eos_token_id lists {len(ids)} ids, above the limit of {_MAX_STOP_IDS}")
    for token in ids:
        if not _is_int(token) or not 0 <= token < vocab_size:
            raise PackageError(f"{path}: eos_token_id holds {token!r:.40}, expected an integer below {vocab_size}")
    return tuple(ids)


def special_tokens_of(config: Mapping[str, Any], path: Path) -> dict[str, str]:
    """The named tokens (bos_token, ...) of a tokenizer_config.json.

    Raises:
        PackageError: one is no text; the message begins with `path`.
    """
    tokens = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = config.get(name)
        # Older configurations write the token as an object with its stripping rules.
        text = value.get("content") if isinstance(value, dict) else value
        if text is None:
            continue
        if not isinstance(text, str):
            raise PackageError(f"{path}: {name} is {value!r:.40}, expected a string")
        tokens[name] = text
    return tokens


def _read_template(config: Mapping[str, Any], directory: Path) -> str | None:
    path = directory / CHAT_TEMPLATE
    if path.exists():
        if not path.resolve().is_relative_to(directory.resolve()):
            raise PackageError(f"{path}: a link that leaves the package ({path.resolve()}); copy the file instead")
        return decode_utf8(read_bytes(path, _MAX_TEMPLATE_BYTES), path)
    return template_of(config, directory / TOKENIZER_CONFIG)


def template_of(config: Mapping[str, Any], path: Path) -> str | None:
    """The chat template in a tokenizer_config.json; None where there is none.

    Raises:
        PackageError: it is no text, or too long; the message begins with `path`.
    """
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if template is None:
        return None
    if not isinstance(template, str):
        raise PackageError(f"{path}: chat_template is a {type(template).__name__}, expected a string")
    if len(template) > _MAX_TEMPLATE_BYTES:
        raise PackageError(
            f"{path}: chat_template has {len(template)} characters, above the limit of {_MAX_TEMPLATE_BYTES}"
        )
    return template
