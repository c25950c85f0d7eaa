from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitnet_onnx.errors import BitnetOnnxError, UnsupportedError
from bitnet_onnx.training.engines import environment

_OWN = sys.version_info[:2]


@pytest.fixture
def as_if_wheels_were_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any platform and Python will do for what is tested here."""
    monkeypatch.setattr(environment, "_PYTHONS", (_OWN,))
    monkeypatch.setattr(environment, "possible", lambda: None)


def _environment(place: Path, *, works: bool) -> Path:
    """A stand-in: a Python that answers the check as one would that works or does not."""
    python = environment._python_of(place)
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\n" + ("exit 0\n" if works else "echo 'ImportError: gone' >&2\nexit 1\n"), "utf-8")
    python.chmod(0o755)
    return python


def test_the_environment_is_made_once_and_trains(training_python: Path) -> None:
    stages: list[str] = []
    assert environment.prepare(lambda stage, done, total: stages.append(f"{stage} {done}/{total}")) == training_python
    assert stages == ["done 3/3"]
    assert environment.available() == training_python
    code = "import onnxruntime, sys; print(onnxruntime.__version__, sys.prefix)"
    said = subprocess.run([training_python, "-I", "-c", code], capture_output=True, text=True, check=True).stdout
    version, prefix = said.split()
    assert version == environment.VERSION
    assert prefix != sys.prefix


def test_what_was_never_made_is_not_available(tmp_path: Path) -> None:
    assert environment.available(tmp_path / "absent") is None


@pytest.mark.parametrize(
    ("platform", "machine", "reason"),
    [("linux", "aarch64", "has no wheels for linux aarch64"), ("sunos", "sparc", "has no wheels for sunos sparc")],
)
def test_a_machine_without_wheels_is_told_what_to_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, machine: str, reason: str
) -> None:
    monkeypatch.setattr(environment.platform, "machine", lambda: machine)
    monkeypatch.setattr(environment.sys, "platform", platform)
    with pytest.raises(UnsupportedError, match=rf'{reason}: engine = "onnxruntime" needs none of it'):
        environment.prepare(folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_newer_python_takes_an_older_one_from_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_PYTHONS", ((3, 98), (3, 99)))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment._interpreter() is None
    for minor, says in ((98, "CPython 3 97"), (99, "CPython 3 99")):
        script = tmp_path / f"python3.{minor}"
        script.write_text(f"#!/bin/sh\necho {says}\n", "utf-8")
        script.chmod(0o755)
    if sys.platform == "win32":
        pytest.skip("the stand-ins are shell scripts")
    # The first is not what its name says.
    assert environment._interpreter() == (tmp_path / "python3.99", (3, 99))


def test_no_python_for_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_PLATFORMS", {(sys.platform, environment.platform.machine().lower())})
    monkeypatch.setattr(environment, "_PYTHONS", ((3, 99),))
    assert environment.possible() == "onnxruntime-training 1.19.2 needs CPython 3.11 or 3.12, and neither is on PATH"


@pytest.mark.usefixtures("as_if_wheels_were_here")
def test_without_a_network_the_error_names_log_and_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("PIP_CONFIG_FILE", "PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.setenv(variable, os.devnull if variable == "PIP_CONFIG_FILE" else "")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(BitnetOnnxError) as caught:
        environment.prepare(folder=tmp_path)
    message = str(caught.value)
    (log,) = tmp_path.iterdir()
    assert "No matching distribution found for onnxruntime-training-cpu==1.19.2" in message
    assert str(log) in message
    assert 'engine = "onnxruntime" needs none of it' in message
    assert "\n" not in message
    assert "127.0.0.1" in log.read_text("utf-8")


@pytest.mark.usefixtures("as_if_wheels_were_here")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(BitnetOnnxError, match=r"file: the cache cannot be written \(.*\): set BITNET_ONNX_CACHE"):
        environment.prepare(folder=file)


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-ins are shell scripts")
class TestPlaces:
    def test_the_first_of_two_stays(self, tmp_path: Path) -> None:
        first = _environment(tmp_path / "place", works=True)
        second = _environment(tmp_path / "fresh" / "environment", works=True)
        environment._put(tmp_path / "fresh" / "environment", tmp_path / "place")
        assert first.is_file()
        assert second.is_file()

    def test_a_broken_one_is_replaced(self, tmp_path: Path) -> None:
        _environment(tmp_path / "place", works=False)
        _environment(tmp_path / "fresh" / "environment", works=True)
        environment._put(tmp_path / "fresh" / "environment", tmp_path / "place")
        assert environment._check(environment._python_of(tmp_path / "place")) is None
        assert [path.name for path in (tmp_path / "fresh").iterdir()] == ["broken"]

    def test_a_broken_one_is_not_available(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(environment, "_PYTHONS", (_OWN,))
        place = environment._place(tmp_path, _OWN)
        python = _environment(place, works=False)
        assert environment.available(tmp_path) is None
        assert environment._check(python) == "ImportError: gone"
        python.write_text("#!/bin/sh\nexit 0\n", "utf-8")
        assert environment.available(tmp_path) == python

    @pytest.mark.usefixtures("as_if_wheels_were_here")
    def test_an_environment_that_does_not_start_is_not_kept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def logged(command: list[str | Path], output: int) -> int:
            if command[-1] == fresh[0]:
                _environment(fresh[0], works=False)
            return 0

        fresh: list[Path] = []
        real = environment._make

        def make(interpreter: Path, place: Path, log: Path, progress: environment.Progress | None) -> None:
            fresh.append(place)
            real(interpreter, place, log, progress)

        monkeypatch.setattr(environment, "_make", make)
        monkeypatch.setattr(environment, "_logged", logged)
        with pytest.raises(BitnetOnnxError, match=r"installed but does not start \(ImportError: gone\): engine"):
            environment.prepare(folder=tmp_path)
        assert environment.available(tmp_path) is None
        assert [path.suffix for path in tmp_path.iterdir()] == [".log"]


def test_what_leads_pip_astray_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("PIP_TARGET", "/elsewhere")
    assert "/elsewhere" not in environment._surroundings().values()
