"""A GGUF in one file or in several: which files belong to it, and whether they agree.

`NAME-00001-of-00003.gguf` and so on; each has the keys `split.no` (from 0), `split.count` and `split.tensors.count`
(of all together), and the first has all others. Source: llama.cpp's gguf-split and model loader.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bitnet_onnx.converters.checkpoints._decode import StoredTensor
from bitnet_onnx.converters.checkpoints._files import BinaryFile, member
from bitnet_onnx.converters.checkpoints._gguf_metadata import Metadata
from bitnet_onnx.converters.checkpoints._gguf_reader import Budget, read_gguf
from bitnet_onnx.errors import CheckpointError
from bitnet_onnx.json_input import shown

_SHARD_NAME: Final = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})(\.gguf)", re.IGNORECASE | re.DOTALL)
_MAX_SHARDS: Final = 1_000


@dataclass(frozen=True, slots=True)
class GgufFiles:
    """All files of a model, open.

    Attributes:
        path: the first.
        stem: its name without number and suffix.
        files: by name.
        metadata: of the first.
        tensors: of all, by their GGUF names.
    """

    path: Path
    stem: str
    files: Mapping[str, BinaryFile]
    metadata: Metadata
    tensors: Mapping[str, StoredTensor]


def shard_names(name: str) -> list[str]:
    """The names of all files that `name` is one of, in their order; only itself if it has no shard's name."""
    match = _SHARD_NAME.fullmatch(name)
    if match is None or not 1 <= int(match[3]) <= _MAX_SHARDS:
        return [name]
    return [f"{match[1]}-{number:05}-of-{match[3]}{match[4]}" for number in range(1, int(match[3]) + 1)]


def one_model(names: Sequence[str]) -> bool:
    """Whether the files are shards of one and the same model."""
    return len(names) == 1 or (len(names) > 1 and set(names) <= set(shard_names(names[0])))


def open_gguf(path: Path, opened: ExitStack, i2s_layout: str | None) -> GgufFiles:
    """Open a file, and with a shard all others; `opened` closes them.

    Raises:
        CheckpointError: a file is broken or missing, or they do not belong together.
        UnsupportedError: something in them that is not read.
    """
    names = shard_names(path.name)
    if len(names) == 1:
        file = opened.enter_context(BinaryFile(path))
        content = read_gguf(file, i2s_layout)
        count = content.metadata.integer("split.count", 1)
        if count > 1:
            raise CheckpointError(
                f"{path}: one of {count} parts of a model; they must be called NAME-00001-of-{count:05}.gguf and so on"
            )
        return GgufFiles(path, _stem(path), {path.name: file}, content.metadata, content.tensors)

    directory = path.parent
    if path.name not in names:
        raise CheckpointError(f"{path}: there is no such part of {len(names)}")
    files: dict[str, BinaryFile] = {}
    parts = _Parts(len(names))
    for name in names:
        part = member(directory, name)
        if part is None:
            raise CheckpointError(f"{directory}: {shown(name)} is missing, one of {len(names)} parts of the model")
        files[name] = opened.enter_context(BinaryFile(part))
        parts.add(files[name], i2s_layout)
    metadata, tensors = parts.finished()
    first = directory / names[0]
    return GgufFiles(first, _stem(first), files, metadata, tensors)


class _Parts:
    """The parts that have been read; what is needed of all is kept of each.

    Those after the first share one budget: they have hardly any metadata.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._number = 0
        self._first: Metadata | None = None
        self._tensors: dict[str, StoredTensor] = {}
        self._later = Budget()

    def add(self, file: BinaryFile, i2s_layout: str | None) -> None:
        """Read the next part and compare it with those before."""
        content = read_gguf(file, i2s_layout, self._later if self._first else None)
        metadata, first = content.metadata, self._first or content.metadata
        expected = {
            "split.no": self._number,
            "split.count": self._count,
            "split.tensors.count": first.integer("split.tensors.count"),
        }
        for key, value in expected.items():
            if metadata.integer(key) != value:
                raise CheckpointError(f"{metadata.source}: {key} is {metadata.integer(key)}, expected {value}")
        architecture = first.text("general.architecture")
        other = metadata.text("general.architecture", architecture)
        if other != architecture:
            raise CheckpointError(
                f"{metadata.source}: architecture {shown(other)}, but the first part has {shown(architecture)}"
            )
        for name, tensor in content.tensors.items():
            if name in self._tensors:
                raise CheckpointError(
                    f"{metadata.source}: tensor {shown(name)} is in {shown(self._tensors[name].info.file)} too"
                )
            self._tensors[name] = tensor
        self._first = first
        self._number += 1

    def finished(self) -> tuple[Metadata, dict[str, StoredTensor]]:
        """Metadata of the first part and the tensors of all."""
        if self._first is None:
            raise CheckpointError("a GGUF model of no parts")
        total = self._first.integer("split.tensors.count")
        if len(self._tensors) != total:
            raise CheckpointError(
                f"{self._first.source}: split.tensors.count is {total}, but the parts hold {len(self._tensors)}"
            )
        return self._first, self._tensors


def _stem(path: Path) -> str:
    match = _SHARD_NAME.fullmatch(path.name)
    return match[1] if match else path.stem
