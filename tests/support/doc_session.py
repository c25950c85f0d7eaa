"""Runs the steps of a page in one shell, as a reader would: in a folder that looks like a clone, until one fails.

What is not as on a reader's screen:

- Sources are links into the repository, `examples/` is a copy, everything else that is written lands in the folder.
- Ports 8000 to 8099 become free ones, also the one that `serve` takes when it is told none: pages run side by side.
- A command that ends with `&` is waited for until its port answers, and ended with the page.
- `make TARGET` is not run: continuous integration does that. It must be a target.
- `pip install` checks what it would install (`doc_pip.py`), `npm ci` takes what is unpacked already (`doc_npm.py`).
- `book.txt` and `held-out.txt` are the texts that pages let the reader bring.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

from doc_pages import ROOT, Step

_SECONDS = 300
_SOURCES = ("benchmarks", "bitnet_onnx", "converters", "custom_ops", "docs", "model_zoo", "runtime", "tests", "tools")
_PORT = re.compile(r"(?<=:)80\d\d\b|(?<=--port )80\d\d\b")
#: In a command that goes on in the background, where a port may stand anywhere; a comment may follow.
_BACKGROUND = re.compile(r"(?<!&)&\s*(#.*)?$")
_ANY_PORT = re.compile(r"\b80\d\d\b")
_SERVE = re.compile(r"bitnet-onnx serve\b(?![^\n]*--port)")
_PROGRAM = re.compile(r"(?:^|&& |\| |; )(?:\w+=\S+ )*(c\+\+|cc|cmake|curl|node|npm|pkg-config)(?= )", re.MULTILINE)
_TARGET = re.compile(r"^([a-z][a-z-]*):", re.MULTILINE)

_PRELUDE = """
set -eo pipefail
trap 'trap - EXIT; for job in $(jobs -p); do kill "$job" 2> /dev/null || true; done; wait' EXIT
answers() {
  for _ in $(seq 600); do
    if (exec 3<> "/dev/tcp/127.0.0.1/$1") 2> /dev/null; then return 0; fi
    kill -0 "$2" 2> /dev/null || return 1
    sleep 0.1
  done
  return 1
}
"""


def lay_out(folder: Path) -> None:
    """Make a folder look like a clone in which the package is installed."""
    folder.mkdir()
    for entry in ROOT.iterdir():
        if entry.name in _SOURCES:
            (folder / entry.name).symlink_to(entry)
        elif entry.name == "examples":
            built = shutil.ignore_patterns("node_modules", ".build", "build")
            shutil.copytree(entry, folder / entry.name, ignore=built)
        elif entry.is_file() and not entry.name.startswith("."):
            shutil.copy(entry, folder / entry.name)
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "book.txt").write_text(_prose("docs"), "utf-8")
    (folder / "held-out.txt").write_text(_prose("."), "utf-8")


def _prose(where: str) -> str:
    """A text in natural language, some 80 kB at most: paragraphs of pages."""
    found: list[str] = []
    for page in sorted((ROOT / where).glob("*.md")):
        found += [part for part in page.read_text("utf-8").split("\n\n") if re.match(r"[A-Z][a-z]", part)]
    return "\n\n".join(found)[:80_000]


def targets(makefile: Path) -> set[str]:
    """What `make` can be told."""
    return set(_TARGET.findall(makefile.read_text("utf-8")))


def made_by(command: str) -> list[str] | None:
    """The targets of a `make` command; None for another."""
    words = shlex.split(command, comments=True)
    if not words or words[0] != "make":
        return None
    return [word for word in words[1:] if "=" not in word]


def programs(steps: list[Step]) -> set[str]:
    """The programs of others that commands begin with, of those that a machine may lack."""
    return {found for step in steps if step.kind == "command" for found in _PROGRAM.findall(step.text)}


def run(page: str, steps: list[Step], folder: Path) -> str:
    """The output of all steps; fails with the place and the output of the first that does not end with status 0."""
    lay_out(folder)
    work = folder.parent / "session"
    work.mkdir()
    (work / "bin").mkdir()
    (work / "tmp").mkdir()
    for name in ("pip", "npm"):
        shim = work / "bin" / name
        program = Path(__file__).with_name(f"doc_{name}.py")
        shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P "{program}" "$@"\n')
        shim.chmod(0o755)
    script, output = work / "script", work / "output"
    script.write_text(_script(steps, work), "utf-8")
    with output.open("wb") as log:
        process = subprocess.Popen(
            ["bash", str(script)],
            cwd=folder,
            env=_environment(work),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            # What the page left running, and the shell if it is still there.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    text = output.read_text("utf-8", errors="replace")
    if status != 0:
        line = int((work / "line").read_text())
        step = next(step for step in steps if step.line == line)
        ended = f"more than {_SECONDS} s" if status is None else f"status {status}"
        said = text.rpartition(f"\n@@{line}\n")[2]
        raise AssertionError(f"{page}:{line}: {ended}\n{step.text}\n{said[-4000:]}")
    return text


def _environment(work: Path) -> dict[str, str]:
    path = os.pathsep.join((str(work / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]))
    own = {"PATH": path, "SHIMS": str(work / "bin"), "TMPDIR": str(work / "tmp"), "PYTHONUNBUFFERED": "1"}
    return os.environ | own | {"NO_COLOR": "1"}


def _script(steps: list[Step], work: Path) -> str:
    ports: dict[str, str] = {}

    def port(match: re.Match[str]) -> str:
        return ports.setdefault(match[0], str(_free_port()))

    lines = [_PRELUDE]
    for step in steps:
        lines.append(f"printf '%s' {step.line} > {shlex.quote(str(work / 'line'))}; printf '\\n@@%s\\n' {step.line}")
        background = step.kind == "command" and _BACKGROUND.search(step.text) is not None
        text = (_ANY_PORT if background else _PORT).sub(port, _SERVE.sub("bitnet-onnx serve --port 8000", step.text))
        if step.kind == "command":
            if made_by(text) is None:
                lines.append(text)
            if background:
                served = next(iter(_ANY_PORT.findall(step.text)), "8000")
                lines.append(f"answers {ports.setdefault(served, str(_free_port()))} $!")
            continue
        kept = work / f"block-{step.line}"
        kept.write_text(text + "\n", "utf-8")
        if step.kind == "python":
            lines.append(f"python -P {shlex.quote(str(kept))}")
        else:
            name = shlex.quote(step.kind)
            lines.append(f'mkdir -p "$(dirname {name})"; cp {shlex.quote(str(kept))} {name}')
    return "\n".join(lines) + "\n"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
