"""The folder that `ops --copy` makes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import bitnet_onnx.custom_ops as ops
from bitnet_onnx.custom_ops import library_name, library_path
from bitnet_onnx.custom_ops.sdk import CHECKSUMS, SdkFile, copy_sdk, verify_sdk
from bitnet_onnx.errors import InputError, OperatorError

NAMES = {
    "LICENSE",
    "bitnet_ops-config-version.cmake",
    "bitnet_ops-config.cmake",
    "bitnet_ops.h",
    "bitnet_ops.pc",
    library_name(),
    CHECKSUMS,
}
if sys.platform == "win32":
    NAMES.add("bitnet_ops.lib")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "vendor" / "ops"
    files = copy_sdk(folder)
    assert {file.name for file in files} == set(content(folder)) == NAMES
    for file in files:
        data = (folder / file.name).read_bytes()
        assert file == SdkFile(file.name, len(data), hashlib.sha256(data).hexdigest())
    library = library_path()
    assert library is not None
    assert (folder / library_name()).read_bytes() == library.read_bytes()
    assert "Apache License" in (folder / "LICENSE").read_text("utf-8")
    assert {file.name for file in verify_sdk(folder)} == NAMES - {CHECKSUMS}


def test_sha256sum_reads_the_checksums(tmp_path: Path) -> None:
    tool = shutil.which("sha256sum")
    if tool is None:
        pytest.skip("sha256sum is not installed")
    copy_sdk(tmp_path)
    command = [tool, "--strict", "-c", CHECKSUMS]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert sorted(ended.stdout.splitlines()) == sorted(f"{name}: OK" for name in NAMES - {CHECKSUMS})


def test_a_second_copy_changes_nothing(tmp_path: Path) -> None:
    copy_sdk(tmp_path)
    before = {path: path.stat().st_ino for path in tmp_path.iterdir()}
    copy_sdk(tmp_path)
    assert {path: path.stat().st_ino for path in tmp_path.iterdir()} == before


def test_another_file_stays_unless_told(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("mine")
    with pytest.raises(InputError, match=r"LICENSE exists with other content: .* --overwrite"):
        copy_sdk(tmp_path)
    assert content(tmp_path) == {"LICENSE": b"mine"}
    copy_sdk(tmp_path, overwrite=True)
    assert set(content(tmp_path)) == NAMES
    verify_sdk(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights on Windows")
def test_a_link_is_never_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("mine")
    folder = tmp_path / "ops"
    folder.mkdir()
    (folder / library_name()).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="exists with other content"):
        copy_sdk(folder)
    with pytest.raises(InputError, match="is not a regular file: remove it"):
        copy_sdk(folder, overwrite=True)
    assert (tmp_path / "elsewhere").read_text() == "mine"
    assert [path.name for path in folder.iterdir()] == [library_name()]


def test_a_file_for_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ops").write_text("mine")
    for folder in (tmp_path / "ops", tmp_path / "ops" / "below"):
        with pytest.raises(InputError, match=r"cannot be written: .*; choose another folder"):
            copy_sdk(folder)
    assert content(tmp_path) == {"ops": b"mine"}


def test_a_write_that_fails_leaves_no_part_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(InputError, match="No space left on device"):
        copy_sdk(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "bitnet_ops.h").unlink(), "bitnet_ops.h: missing, or not a regular file"),
        (lambda folder: (folder / "LICENSE").write_text("x"), f"LICENSE: its content is not that of {CHECKSUMS}"),
        (lambda folder: (folder / CHECKSUMS).unlink(), f"{CHECKSUMS}: cannot be read: No such file"),
        (lambda folder: (folder / CHECKSUMS).write_text(""), "it is empty"),
        (lambda folder: (folder / CHECKSUMS).write_bytes(b"\xff" * 70), "is no checksum and name"),
        (lambda folder: (folder / CHECKSUMS).write_text(f"{'0' * 64}  ../up\n"), "is no checksum and name"),
        (lambda folder: (folder / CHECKSUMS).write_bytes(b" " * 70_000), "more than 65536 bytes"),
    ],
)
def test_a_spoiled_folder_is_told(tmp_path: Path, spoil, words: str) -> None:
    copy_sdk(tmp_path)
    spoil(tmp_path)
    with pytest.raises(InputError, match=words) as caught:
        verify_sdk(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_library_of_another_version_gets_no_header_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = tmp_path / "sdk" / "bitnet_ops.h"
    header.parent.mkdir()
    header.write_text('#define BITNET_OPS_VERSION "9.1.0"\n')
    library = library_path()
    monkeypatch.setenv("BITNET_ONNX_OPS_LIBRARY", str(library))
    monkeypatch.setattr(ops, "__path__", [str(tmp_path)])
    with pytest.raises(OperatorError, match=r"is bitnet_ops .*, and the header here is of 9\.1\.0: .* unset"):
        copy_sdk(tmp_path / "out")
    header.unlink()
    with pytest.raises(OperatorError, match="header and the licence of the operator library are not installed"):
        copy_sdk(tmp_path / "out")
    assert not (tmp_path / "out").exists()
