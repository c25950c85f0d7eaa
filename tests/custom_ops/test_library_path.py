"""How Python finds the operator library."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from foreign_libraries import AARCH64, X86_64, elf

import bitnet_onnx.custom_ops as ops
from bitnet_onnx.errors import OperatorError

NAME = {"win32": "bitnet_ops.dll", "darwin": "libbitnet_ops.dylib"}.get(sys.platform, "libbitnet_ops.so")


@pytest.fixture
def folder(no_library, tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv("BITNET_ONNX_OPS_LIBRARY", raising=False)
    monkeypatch.setattr(ops, "__path__", ["/nowhere", str(tmp_path)])
    return tmp_path


def test_none_without_a_library(folder) -> None:
    assert ops.library_path() is None
    assert ops.library_version() is None


def test_found_in_any_folder_of_the_package(folder) -> None:
    (folder / NAME).touch()
    assert ops.library_path() == folder / NAME


def test_variable_names_another_copy(folder, monkeypatch) -> None:
    other = folder / "other.so"
    other.touch()
    monkeypatch.setenv("BITNET_ONNX_OPS_LIBRARY", str(other))
    assert ops.library_path() == other


def test_variable_names_nothing(folder, monkeypatch) -> None:
    monkeypatch.setenv("BITNET_ONNX_OPS_LIBRARY", str(folder / "absent.so"))
    with pytest.raises(OperatorError, match=r"BITNET_ONNX_OPS_LIBRARY is '.*absent.so', which is not a file"):
        ops.library_path()


def test_file_that_is_no_library(folder) -> None:
    (folder / NAME).write_bytes(b"not a library")
    with pytest.raises(OperatorError, match="is not a shared library"):
        ops.library_version()


@pytest.mark.skipif(sys.platform != "linux", reason="the file is made as for Linux")
def test_a_library_that_the_loader_refuses(folder) -> None:
    machine = {"x86_64": X86_64, "aarch64": AARCH64}.get(os.uname().machine)
    if machine is None:
        pytest.skip("no such file is made for this processor")
    (folder / NAME).write_bytes(elf(machine))
    with pytest.raises(OperatorError, match=rf"{NAME} cannot be loaded: .*; reinstall bitnet-onnx"):
        ops.library_version()
