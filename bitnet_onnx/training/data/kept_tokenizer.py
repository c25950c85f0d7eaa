"""The tokenizer that a run has trained, kept for when it goes on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from bitnet_onnx.converters.checkpoints._files import read_small
from bitnet_onnx.converters.checkpoints._tokenizer_check import check_foreign_tokenizer
from bitnet_onnx.errors import CheckpointError, InputError
from bitnet_onnx.json_input import load_object
from bitnet_onnx.package_format import TOKENIZER, TOKENIZER_CONFIG
from bitnet_onnx.training.data._tokenization import file_digest
from bitnet_onnx.training.data.tokenizer_training import train_tokenizer
from bitnet_onnx.training.settings import DataSettings

logger = logging.getLogger(__name__)

_FORMAT: Final = "bitnet-onnx trained tokenizer 1"
#: That of a model, and what JSON in JSON adds.
_MAX_BYTES: Final = 80_000_000


def kept_tokenizer(
    path: Path, settings: DataSettings, *, write: bool
) -> Callable[[Iterable[str], int], Mapping[str, bytes]]:
    """`train_tokenizer` that looks first whether a run before it did the same.

    Args:
        path: of the file that keeps it; it says of which texts it is.
        settings: name the texts.
        write: keep what is trained.
    """

    def trained(texts: Iterable[str], vocab_size: int) -> Mapping[str, bytes]:
        key = _key(settings, vocab_size)
        found = _read(path, key, vocab_size)
        if found is None:
            found = train_tokenizer(texts, vocab_size)
            if write:
                _write(path, key, found)
        return found

    return trained


def _key(settings: DataSettings, vocab_size: int) -> str:
    """Of all that a tokenizer follows from, but for the version of the library that trained it."""
    parts = [_FORMAT, vocab_size, settings.holdout, [(path.suffix, file_digest(path)) for path in settings.train]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _read(path: Path, key: str, vocab_size: int) -> dict[str, bytes] | None:
    """Its files, or None where there is none of these texts."""
    try:
        data = read_small(path.parent, path.name, max_bytes=_MAX_BYTES)
        if data is None:
            return None
        fields = load_object(data, str(path), max_bytes=_MAX_BYTES, error=CheckpointError)
        if fields.get("of") != key:
            return None
        texts = {name: fields.get(name) for name in (TOKENIZER, TOKENIZER_CONFIG)}
        files = {name: text.encode() for name, text in texts.items() if isinstance(text, str)}
        if files.keys() != texts.keys() or fields.get("sha256") != _digest(files):
            raise CheckpointError(f"{path}: its content is not what its sha256 says")
        check_foreign_tokenizer(files[TOKENIZER], str(path), vocab_size)
    except InputError as error:
        logger.warning("%s; the tokenizer is trained again", error)
        return None
    return files


def _write(path: Path, key: str, files: Mapping[str, bytes]) -> None:
    texts = {name: data.decode() for name, data in files.items()}
    work = path.with_name(f".{path.name}.partial")
    with work.open("w", encoding="utf-8") as file:
        json.dump({"format": _FORMAT, "of": key, "sha256": _digest(files), **texts}, file)
        file.flush()
        os.fsync(file.fileno())
    work.replace(path)


def _digest(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, data in sorted(files.items()):
        digest.update(f"{name} {len(data)} ".encode() + data)
    return digest.hexdigest()
