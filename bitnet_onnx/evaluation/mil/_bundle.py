"""The files of a `.mlpackage`: a directory whose Manifest.json says where they lie."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bitnet_onnx.converters.checkpoints._files import BinaryFile
from bitnet_onnx.errors import PackageError
from bitnet_onnx.json_input import load_object, shown
from bitnet_onnx.package_format import COREML_SUFFIX

MANIFEST: Final = "Manifest.json"
_DATA: Final = "Data"
_MAX_MANIFEST: Final = 1 << 20
_MAX_ITEMS: Final = 100
#: Weights lie in a file of their own; a program of 2 billion weights has some megabytes.
_MAX_MODEL: Final = 32 << 20
#: What a program writes where the directory of the model is meant.
_MODEL_PATH: Final = "@model_path"


def is_bundle(path: Path) -> bool:
    """Whether a path names a Core ML package."""
    return path.suffix == COREML_SUFFIX


@dataclass(frozen=True, slots=True)
class Bundle:
    """A package whose manifest was read.

    Attributes:
        path: the directory.
        model: path of the program.
    """

    path: Path
    model: Path

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Find the program of a package.

        Raises:
            PackageError: it is not a Core ML package, or its manifest leads elsewhere.
        """
        if not path.is_dir():
            raise PackageError(f"{path}: not a directory: a Core ML package is one that ends in .mlpackage")
        manifest = _inside(path, (MANIFEST,))
        fields = load_object(
            _small(manifest, _MAX_MANIFEST), str(manifest), max_bytes=_MAX_MANIFEST, error=PackageError
        )
        items, root = fields.get("itemInfoEntries"), fields.get("rootModelIdentifier")
        if not isinstance(items, dict) or len(items) > _MAX_ITEMS:
            raise PackageError(f"{manifest}: itemInfoEntries must be an object of at most {_MAX_ITEMS} items")
        item = items.get(root) if isinstance(root, str) else None
        name = item.get("path") if isinstance(item, dict) else None
        if not isinstance(name, str):
            raise PackageError(f"{manifest}: rootModelIdentifier {shown(str(root))} names no item with a path")
        return cls(path, _inside(path, (_DATA, *_parts(name, str(manifest)))))

    def read_model(self) -> bytes:
        """The serialized program.

        Raises:
            PackageError: it cannot be read, or is too large.
        """
        return _small(self.model, _MAX_MODEL)

    def weights(self, name: str) -> Path:
        """The path of a file of weights as the program names it, `@model_path/weights/weight.bin`.

        Raises:
            PackageError: the name leads out of the package, or there is no such file.
        """
        first, *rest = _parts(name, str(self.model))
        if first != _MODEL_PATH or not rest:
            raise PackageError(f"{self.model}: weights in {shown(name)}: expected {_MODEL_PATH}/FILE")
        folder = self.model.parent.relative_to(self.path).parts
        return _inside(self.path, (*folder, *rest))


def _parts(name: str, where: str) -> tuple[str, ...]:
    parts = name.split("/")
    plain = all(part not in {"", ".", ".."} and not any(c in part for c in "\\:\0") for part in parts)
    if not plain or len(parts) > 8 or not name.isprintable():
        raise PackageError(f"{where}: {shown(name)} is not the path of a file within the package")
    return tuple(parts)


def _inside(root: Path, parts: tuple[str, ...]) -> Path:
    """A file below `root` on a way without links: a package is complete by itself."""
    path = root
    for part in parts:
        path /= part
        if path.is_symlink():
            raise PackageError(f"{path}: a symbolic link; a package must hold its files itself")
    if not path.is_file():
        raise PackageError(f"{path}: {'not a regular file' if os.path.lexists(path) else 'there is no such file'}")
    return path


def _small(path: Path, limit: int) -> bytes:
    with BinaryFile(path) as file:
        if file.size > limit:
            raise PackageError(f"{path}: {file.size} bytes exceed the limit of {limit}")
        return file.read(0, file.size)
