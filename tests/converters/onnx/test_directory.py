"""A directory that appears whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bitnet_onnx.converters.onnx._directory import MANIFEST, new_directory
from bitnet_onnx.errors import PackageError


def write(target: Path, content: str = "new", *, overwrite: bool = False) -> None:
    with new_directory(target, overwrite=overwrite) as work:
        (work / MANIFEST).write_text(content)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.rglob("*"))


def test_it_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "package"
    with new_directory(target, overwrite=False) as work:
        (work / MANIFEST).write_text("new")
        assert not target.exists()
        assert work.parent == target.parent
    assert names(tmp_path) == ["a", "b", MANIFEST, "package"]
    if os.name == "posix":
        assert target.stat().st_mode & 0o777 == 0o755


def test_a_relative_name_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("package"))
    assert names(tmp_path) == [MANIFEST, "package"]


def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    write(tmp_path / "package")
    assert names(tmp_path) == [MANIFEST, "package"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_when_the_block_fails(tmp_path: Path, error: type[BaseException]) -> None:
    def fail(work: Path) -> None:
        (work / "half").write_text("x")
        raise error

    with pytest.raises(error), new_directory(tmp_path / "a" / "b" / "package", overwrite=False) as work:
        fail(work)
    assert names(tmp_path) == []


def test_parents_that_were_there_stay(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError), new_directory(tmp_path / "mine" / "b" / "package", overwrite=False):
        raise ValueError
    assert names(tmp_path) == ["mine"]


def test_an_error_of_the_file_system_is_ours(tmp_path: Path) -> None:
    with (
        pytest.raises(PackageError, match="cannot be written: No space left on device"),
        new_directory(tmp_path / "package", overwrite=False),
    ):
        raise OSError(28, "No space left on device")
    assert names(tmp_path) == []


def test_an_existing_package_is_kept_without_overwrite(tmp_path: Path) -> None:
    write(tmp_path / "package", "old")
    with pytest.raises(PackageError, match="exists: choose another output, or replace it with --overwrite"):
        write(tmp_path / "package")
    assert (tmp_path / "package" / MANIFEST).read_text() == "old"


def test_overwrite_replaces_a_package(tmp_path: Path) -> None:
    write(tmp_path / "package", "old")
    (tmp_path / "package" / "stale").touch()
    write(tmp_path / "package", overwrite=True)
    assert names(tmp_path) == [MANIFEST, "package"]
    assert (tmp_path / "package" / MANIFEST).read_text() == "new"


def test_a_failed_overwrite_keeps_the_old_package(tmp_path: Path) -> None:
    write(tmp_path / "package", "old")
    with pytest.raises(ValueError), new_directory(tmp_path / "package", overwrite=True):
        raise ValueError
    assert names(tmp_path) == [MANIFEST, "package"]
    assert (tmp_path / "package" / MANIFEST).read_text() == "old"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(5, "Input/output error")])
@pytest.mark.parametrize("failing", [1, 2])
def test_a_failure_while_replacing_keeps_the_old_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, failing: int
) -> None:
    write(tmp_path / "package", "old")
    rename, calls = Path.rename, []

    def flaky(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == failing:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", flaky)
    with pytest.raises((KeyboardInterrupt, PackageError)):
        write(tmp_path / "package", overwrite=True)
    monkeypatch.undo()
    assert names(tmp_path) == [MANIFEST, "package"]
    assert (tmp_path / "package" / MANIFEST).read_text() == "old"


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_package_of_ours_is_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "letter").write_text("mine")
    for name, message in (("file", "is not a directory"), ("folder", "is not a package of ours")):
        with pytest.raises(PackageError, match=message):
            write(tmp_path / name, overwrite=overwrite)
    assert names(tmp_path) == ["file", "folder", "letter"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_symbolic_links_are_not_followed(tmp_path: Path, overwrite: bool) -> None:
    write(tmp_path / "package", "old")
    for name, target in (("link", "package"), ("dangling", "nowhere")):
        (tmp_path / name).symlink_to(tmp_path / target)
        with pytest.raises(PackageError, match="is a symbolic link: name the directory itself"):
            write(tmp_path / name, overwrite=overwrite)
    assert (tmp_path / "package" / MANIFEST).read_text() == "old"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", [".", "..", "/"])
def test_a_name_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    with pytest.raises(PackageError, match="is no name for a package"):
        write(Path(name))
    assert names(tmp_path) == ["inner"]


def test_impossible_names_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for target in (tmp_path / "file" / "package", tmp_path / ("n" * 300)):
        with pytest.raises(PackageError, match="cannot be written"):
            write(target)
    assert names(tmp_path) == ["file"]
