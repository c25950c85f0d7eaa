"""The C and C++ headers of ONNX Runtime, which its wheel does not have."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

from bitnet_onnx.model_zoo import cache_root

#: A package for Unity, with the headers of version 29 of the interface.
_HEADERS = "com.github.asus4.onnxruntime@0.4.9"
_HEADERS_SHA256 = "e59788788818fdde1b2e522e766a21ba0f7d8391de55737abf81e32cc801785d"
_HEADERS_FOLDER = "package/Plugins/iOS~/onnxruntime.xcframework/ios-arm64/onnxruntime.framework/Headers/"
_HEADERS_BYTES = 8 * 2**20
_FETCH_S = 300


def headers() -> Path:
    """A folder with ONNX Runtime's headers: `$BITNET_ONNX_ORT_HEADERS`, the system's, or fetched once into a cache."""
    installed = Path(os.environ.get("BITNET_ONNX_ORT_HEADERS", "/usr/include/onnxruntime"))
    if (installed / "onnxruntime_cxx_api.h").is_file():
        return installed
    folder = cache_root() / "onnxruntime-headers" / "29"
    if folder.is_dir():
        return folder
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no headers of ONNX Runtime: set BITNET_ONNX_ORT_HEADERS, or install npm, which fetches them")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        scratch = Path(name)
        try:
            fetched = subprocess.run(
                [npm, "pack", _HEADERS, "--silent", "--cache", str(scratch)],
                cwd=scratch,
                capture_output=True,
                text=True,
                timeout=_FETCH_S,
            )
        except subprocess.TimeoutExpired:
            pytest.skip(f"no headers of ONNX Runtime: npm has not fetched {_HEADERS} in {_FETCH_S} s")
        if fetched.returncode != 0:
            pytest.skip(f"no headers of ONNX Runtime: npm cannot fetch {_HEADERS}: {fetched.stderr.strip():.200}")
        archive = scratch / fetched.stdout.split()[-1]
        with archive.open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == _HEADERS_SHA256, f"{_HEADERS} has changed"
        (scratch / "29").mkdir()
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.name.startswith(_HEADERS_FOLDER) and member.isfile() and member.size < _HEADERS_BYTES:
                    content = tar.extractfile(member)
                    assert content is not None
                    (scratch / "29" / Path(member.name).name).write_bytes(content.read())
        try:
            (scratch / "29").rename(folder)
        except OSError:  # another process was faster
            assert folder.is_dir()
    return folder
