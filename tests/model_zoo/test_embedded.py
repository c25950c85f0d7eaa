"""Packages that come with the installation."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

import bitnet_onnx
from bitnet_onnx import model_zoo
from bitnet_onnx.cli import app
from bitnet_onnx.errors import ZooError

TINY = "bitnet-tiny"
#: What the package may take of everyone's download.
MOST_BYTES = 3_000_000


def test_the_embedded_model_is_small_and_what_its_manifest_says() -> None:
    manifest, path = model_zoo.get(TINY), model_zoo.resolve_package(TINY)
    found = bitnet_onnx.inspect(path)
    assert sum(file.stat().st_size for file in path.iterdir()) <= MOST_BYTES
    assert found.kind == "package"
    assert found.family == manifest.family
    assert (path / "model.onnx.data").stat().st_size == manifest.tensor_bytes
    assert manifest.origin == "embedded"
    assert manifest.download_bytes == 0


def test_it_writes_text_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    arguments = ["infer", TINY, "--prompt", "In the beginning", "--max-new-tokens", "12"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert len(result.output.split()) > 6
    assert result.output.isprintable() or "\n" in result.output


def test_pull_and_resolve_give_its_path() -> None:
    path = model_zoo.resolve_package(TINY)
    assert model_zoo.pull(TINY) == path
    assert model_zoo.resolve(TINY) == path


def test_a_path_that_exists_wins_over_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / TINY).mkdir()
    monkeypatch.chdir(tmp_path)
    assert model_zoo.resolve_package(TINY) == Path(TINY)


def test_a_checkpoint_is_to_be_converted_first() -> None:
    with pytest.raises(ZooError, match="bitnet-onnx convert smollm2-135m-instruct"):
        model_zoo.resolve_package("smollm2-135m-instruct")


def test_any_other_text_is_a_path() -> None:
    assert model_zoo.resolve_package("no/such/package") == Path("no/such/package")


def test_an_installation_that_lacks_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("bitnet_onnx.model_zoo._catalog._folder", lambda: tmp_path)
    with pytest.raises(ZooError, match="lacks it; install bitnet-onnx again"):
        model_zoo.resolve_package(TINY)
