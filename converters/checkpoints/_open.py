"""Telling the checkpoint formats apart."""

from __future__ import annotations

from pathlib import Path

from bitnet_onnx.converters.checkpoints._base import Checkpoint
from bitnet_onnx.converters.checkpoints._files import member
from bitnet_onnx.converters.checkpoints._gguf_shards import one_model
from bitnet_onnx.converters.checkpoints._types import I2_S_LAYOUTS
from bitnet_onnx.converters.checkpoints.gguf import GgufCheckpoint
from bitnet_onnx.converters.checkpoints.huggingface import INDEX, SINGLE, HuggingFaceCheckpoint
from bitnet_onnx.errors import CheckpointError, InputError, PackageError, UnsupportedError
from bitnet_onnx.json_input import shown
from bitnet_onnx.package_checks import misplaced_package
from bitnet_onnx.package_format import COREML_SUFFIX

# Formats that execute code when they are loaded, or that nothing here reads.
_REFUSED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack", ".nemo")


def open_checkpoint(path: Path, *, i2s_layout: str | None = None) -> Checkpoint:
    """Open a Hugging Face directory with safetensors, a GGUF file (any of its parts), or a directory of one GGUF model.

    Only headers are read, and nothing that the checkpoint brings along is executed.

    Args:
        path: the directory or file.
        i2s_layout: how the I2_S tensors of a GGUF file are laid out, which it does not say itself: `x86`.

    Raises:
        InputError: the path does not exist, or there is no such layout.
        CheckpointError: the checkpoint is broken or contradicts itself.
        PackageError: it is a part of one of our packages, or one whose other files are missing.
        UnsupportedError: a format or type that is not read.
    """
    if i2s_layout is not None and i2s_layout not in I2_S_LAYOUTS:
        raise InputError(f"i2s_layout is {i2s_layout!r:.60}: choose one of {', '.join(I2_S_LAYOUTS)}")
    if path.suffix == COREML_SUFFIX:
        raise UnsupportedError(f"{path} is a Core ML package: give the checkpoint that it was made from")
    if path.is_dir():
        return _open_directory(path, i2s_layout)
    if not path.exists():
        raise InputError(f"{path}: there is no such file or directory")
    if path.suffix.lower() == ".gguf":
        return GgufCheckpoint(path, i2s_layout=i2s_layout)
    if path.suffix.lower() in _REFUSED:
        raise UnsupportedError(_pickle_message(path.parent, path.name))
    if path.suffix.lower() == ".safetensors":
        raise InputError(f"{path}: give the directory that holds this file and its config.json")
    if misplaced := misplaced_package(path):
        raise PackageError(misplaced)
    raise UnsupportedError(f"{path}: not a checkpoint; give a Hugging Face directory or a .gguf file")


def _open_directory(directory: Path, i2s_layout: str | None) -> Checkpoint:
    if member(directory, SINGLE) is not None or member(directory, INDEX) is not None:
        return HuggingFaceCheckpoint(directory)
    names = sorted(entry.name for entry in directory.iterdir())
    found = [name for name in names if name.lower().endswith(".gguf")]
    if found and not one_model(found):
        raise InputError(f"{directory}: {len(found)} GGUF files, name one of them: {', '.join(map(shown, found[:5]))}")
    if found and (path := member(directory, found[0])):
        return GgufCheckpoint(path, i2s_layout=i2s_layout)
    for name in names:
        if name.lower().endswith(_REFUSED):
            raise UnsupportedError(_pickle_message(directory, name))
    if misplaced := misplaced_package(directory):
        raise PackageError(misplaced)
    raise CheckpointError(f"{directory}: there is neither {SINGLE}, nor {INDEX}, nor a .gguf file")


def _pickle_message(directory: Path, name: str) -> str:
    return (
        f"{directory}: {shown(name)} is not read, formats other than safetensors and GGUF may run code when loaded; "
        "convert it to safetensors (model.save_pretrained(..., safe_serialization=True))"
    )
