"""The environment of onnxruntime-training: made once in the cache, apart from the user's own."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bitnet_onnx.errors import BitnetOnnxError, UnsupportedError
from bitnet_onnx.model_zoo import cache_root

#: Called with a stage ("create", "install", "verify", "done"), the stages done and all stages.
Progress = Callable[[str, int, int], None]

VERSION: Final = "1.19.2"
#: The last release; what it was measured with.
REQUIREMENTS: Final = (f"onnxruntime-training-cpu=={VERSION}", "onnx>=1.16,<1.18", "numpy>=1.26")
_PYTHONS: Final = ((3, 12), (3, 11))
#: Platforms and machines that it has wheels for.
_PLATFORMS: Final = {("linux", "x86_64"), ("darwin", "arm64"), ("darwin", "x86_64"), ("win32", "amd64")}
_STAGES: Final = ("create", "install", "verify", "done")
_ELSE: Final = 'engine = "onnxruntime" needs none of it'
_SECONDS_TO_CHECK: Final = 120
#: What would lead pip or Python out of the new environment.
_ASTRAY: Final = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_ROOT", "VIRTUAL_ENV")
_CHECK: Final = (
    "import numpy, onnx, onnxruntime\n"
    "from onnxruntime.capi._pybind_state import GradientGraphBuilder, get_optimized_model\n"
    f"raise SystemExit(onnxruntime.__version__ != {VERSION!r})\n"
)


def available(folder: Path | None = None) -> Path | None:
    """The environment's Python if it was made before and starts, else None; `folder` is as in `prepare`."""
    for version in _PYTHONS:
        python = _python_of(_place(folder, version))
        if python.is_file() and _check(python) is None:
            return python
    return None


def possible() -> str | None:
    """Why the environment cannot be made on this machine; None where it can, given a network."""
    found = sys.platform, platform.machine().lower()
    if found not in _PLATFORMS:
        return f"onnxruntime-training {VERSION} has no wheels for {' '.join(found)}"
    if _interpreter() is None:
        return f"onnxruntime-training {VERSION} needs CPython 3.11 or 3.12, and neither is on PATH"
    return None


def prepare(progress: Progress | None = None, folder: Path | None = None) -> Path:
    """The environment's Python; the environment is made first where there is none that works.

    Two processes may do it at once: each makes its own, and the first one's stays.

    Args:
        progress: told of each stage.
        folder: where environments are kept; None is `training` in the cache.

    Raises:
        UnsupportedError: there is no such wheel for this machine, or no Python 3.11 or 3.12.
        BitnetOnnxError: it could not be made; the message names a log.
    """
    if (python := available(folder)) is not None:
        _tell(progress, "done")
        return python
    chosen = _interpreter()
    if (reason := possible()) is not None or chosen is None:
        raise UnsupportedError(f"{reason}: {_ELSE}")
    interpreter, version = chosen
    place = _place(folder, version)
    log = place.with_name(f"{place.name}.log")
    with _staging(place) as fresh:
        _make(interpreter, fresh, log, progress)
        _put(fresh, place)
    _tell(progress, "done")
    return _python_of(place)


def _make(interpreter: Path, fresh: Path, log: Path, progress: Progress | None) -> None:
    try:
        with log.open("wb") as output:
            _tell(progress, "create")
            status = _logged([interpreter, "-I", "-m", "venv", fresh], output.fileno())
            if status == 0:
                _tell(progress, "install")
                pip: list[str | Path] = [
                    _python_of(fresh),
                    "-I",
                    "-m",
                    "pip",
                    "--disable-pip-version-check",
                    "--no-input",
                    "install",
                ]
                status = _logged([*pip, "--only-binary", ":all:", *REQUIREMENTS], output.fileno())
    except OSError as error:
        raise BitnetOnnxError(
            f"onnxruntime-training {VERSION} cannot be installed: {error.filename or interpreter}: "
            f"{error.strerror or error}; {_ELSE}"
        ) from error
    if status:
        raise BitnetOnnxError(
            f"onnxruntime-training {VERSION} cannot be installed ({_reason(log)}; all of it in {log}): "
            f"check the network, or use the other engine: {_ELSE}"
        )
    _tell(progress, "verify")
    if (reason := _check(_python_of(fresh))) is not None:
        raise BitnetOnnxError(f"onnxruntime-training {VERSION} is installed but does not start ({reason}): {_ELSE}")


def _put(fresh: Path, place: Path) -> None:
    """Move a new environment to its place unless another process was first."""
    for _ in range(2):
        with contextlib.suppress(OSError):  # it is there already
            fresh.rename(place)
            return
        if _check(_python_of(place)) is None:
            return
        # What lies there is broken: its Python was removed, for example.
        with contextlib.suppress(OSError):
            place.rename(fresh.with_name("broken"))
    raise BitnetOnnxError(f"{place}: cannot be replaced by a new environment: remove it")


@contextmanager
def _staging(place: Path) -> Iterator[Path]:
    """A name for a new environment in a fresh folder beside `place`; what is left in the folder is removed."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=".make-", dir=place.parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise BitnetOnnxError(
            f"{place.parent}: the cache cannot be written ({error.strerror or error}): "
            "set BITNET_ONNX_CACHE to another folder"
        ) from error
    with temporary as name:
        yield Path(name) / "environment"


def _interpreter() -> tuple[Path, tuple[int, int]] | None:
    """A Python that the wheels are for, and its version: this one where it is, else one on PATH."""
    own = sys.version_info[:2]
    if own in _PYTHONS and platform.python_implementation() == "CPython":
        return Path(sys.executable), own
    code = "import platform, sys; print(platform.python_implementation(), *sys.version_info[:2])"
    for major, minor in _PYTHONS:
        found = shutil.which(f"python{major}.{minor}")
        # The name alone says little: a version manager has it for versions that are not there.
        if found and _answer([found, "-I", "-c", code]) == f"CPython {major} {minor}":
            return Path(found), (major, minor)
    return None


def _place(folder: Path | None, version: tuple[int, int]) -> Path:
    root = cache_root() / "training" if folder is None else folder
    return root / f"onnxruntime-training-{VERSION}-cp{version[0]}{version[1]}"


def _python_of(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def _surroundings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _ASTRAY}


def _logged(command: list[str | Path], output: int) -> int:
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=_surroundings()
    ).returncode


def _answer(command: list[str]) -> str:
    """What a command prints; nothing where it fails."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS_TO_CHECK, env=_surroundings()
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else ""


def _check(python: Path) -> str | None:
    """Why an environment does not work; None where it does."""
    try:
        done = subprocess.run(
            [python, "-I", "-c", _CHECK],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS_TO_CHECK,
            env=_surroundings(),
        )
    except OSError as error:
        return f"{python}: {error.strerror or error}"
    except subprocess.TimeoutExpired:
        return f"{python}: no answer within {_SECONDS_TO_CHECK} s"
    if done.returncode == 0:
        return None
    lines = done.stderr.decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), f"status {done.returncode}")[:300]


def _reason(log: Path) -> str:
    """The last error of pip's or venv's output, else its last line."""
    try:
        lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    errors = [line for line in lines if line.lower().startswith("error")]
    return (errors or lines or ["no output"])[-1][:300]


def _tell(progress: Progress | None, stage: str) -> None:
    if progress is not None:
        progress(stage, _STAGES.index(stage), len(_STAGES) - 1)
