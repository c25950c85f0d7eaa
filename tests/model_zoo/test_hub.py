"""Fetching from the hub, with a stand-in for the hub's client."""

from __future__ import annotations

import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bitnet_onnx import model_zoo
from bitnet_onnx.errors import ZooError

NAME = "bitnet-b1.58-large"  # no expected size

Client = Callable[..., str]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[Client], None]:
    """Put a `huggingface_hub` with the given snapshot_download in place."""

    def put(client: Client) -> None:
        module = ModuleType("huggingface_hub")
        module.snapshot_download = client  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "huggingface_hub", module)

    return put


def repository(folder: Path, files: dict[str, int]) -> Client:
    """A client that serves those of `files` (path to size) that the patterns let through."""

    def snapshot_download(**options: Any) -> str:
        folder.mkdir()
        (folder / "asked").write_text(repr(options), "utf-8")
        for name, size in files.items():
            if not any(fnmatch(name, pattern) for pattern in options["allow_patterns"]):
                continue
            if any(fnmatch(name, pattern) for pattern in options["ignore_patterns"]):
                continue
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(bytes(size))
        return str(folder)

    return snapshot_download


def test_data_is_fetched_and_code_is_not(install: Callable[[Client], None], tmp_path: Path) -> None:
    wanted = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer.model", "chat_template.jinja"}
    unwanted = {
        "modeling.py",
        "pytorch_model.bin",
        "model.pt",
        "README.md",
        "original/consolidated.safetensors",
        "onnx/config.json",
    }
    install(repository(tmp_path / "snapshot", dict.fromkeys(wanted | unwanted, 8)))
    path = model_zoo.pull(NAME, cache=tmp_path / "cache")
    found = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    assert found == wanted | {"asked"}
    asked = (path / "asked").read_text("utf-8")
    assert "'repo_id': '1bitLLM/bitnet_b1_58-large'" in asked
    assert "'revision': 'main'" in asked
    assert repr(tmp_path / "cache" / "hub") in asked


def test_the_hubs_own_cache_is_used_unless_another_is_chosen(
    install: Callable[[Client], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BITNET_ONNX_CACHE", raising=False)
    files = {"config.json": 2, "model.safetensors": 8}
    install(repository(tmp_path / "one", files))
    assert "'cache_dir': None" in (model_zoo.pull(NAME) / "asked").read_text("utf-8")
    monkeypatch.setenv("BITNET_ONNX_CACHE", str(tmp_path / "mine"))
    install(repository(tmp_path / "two", files))
    assert repr(tmp_path / "mine" / "hub") in (model_zoo.pull(NAME) / "asked").read_text("utf-8")


@pytest.mark.parametrize("files", [{}, {"config.json": 2}, {"model.safetensors": 8}, {"pytorch_model.bin": 8}])
def test_a_repository_without_a_checkpoint_is_refused(
    install: Callable[[Client], None], tmp_path: Path, files: dict[str, int]
) -> None:
    install(repository(tmp_path / "snapshot", files))
    with pytest.raises(ZooError, match=r"bitnet_b1_58-large at revision main holds no config\.json"):
        model_zoo.pull(NAME)


def test_an_unexpected_size_is_a_warning(
    install: Callable[[Client], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install(repository(tmp_path / "snapshot", {"config.json": 2, "model.safetensors": 8}))
    model_zoo.pull("microsoft/bitnet-b1.58-2B-4T")
    assert "have 8 bytes, about 1178562980 were expected" in caplog.text


def test_without_the_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ZooError, match=r"`pip install bitnet-onnx\[hub\]`$"):
        model_zoo.pull(NAME)


@pytest.mark.parametrize(
    ("failure", "part"),
    [(OSError("no\nroute\nto host"), "(no route to host)"), (ValueError(), "(ValueError)")],
)
def test_every_failure_of_the_client_is_one_line(
    install: Callable[[Client], None], failure: Exception, part: str
) -> None:
    def fail(**_: object) -> str:
        raise failure

    install(fail)
    with pytest.raises(ZooError) as caught:
        model_zoo.pull(NAME)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
