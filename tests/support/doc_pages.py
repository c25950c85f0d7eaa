"""What a page of the documentation asks its reader to do: commands, Python, and files to write, in their order.

A fenced block counts by its language and title:

- `console`: lines that begin with `$ ` are commands. A command goes on in the next line behind a backslash, in lines
  that begin with `> `, and to the end of a here-document. Other lines are output, and are not compared.
- `python`: a program of its own.
- any language with the name of a file as its title: the file's text. One that the repository has must hold exactly
  these lines somewhere; another is written when its turn comes.
- a title that begins with "Needs ": left out, for one of the `REASONS`.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).resolve().parent.parent.parent

_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>```+)(?P<language>[\w+-]*)(?P<rest>[^`]*)$")
_TITLE = re.compile(r'title="([^"]*)"')
_FILE = re.compile(r"[\w.-]+(/[\w.-]+)*\.\w+")
_HERE = re.compile(r"<<-?\s*(['\"]?)(\w+)\1")

#: Languages in which commands would escape the test.
SHELLS = frozenset({"bash", "sh", "shell", "zsh", "pycon", "py", "python3", "powershell"})


#: What a block may need to be left out, and who runs it then.
REASONS = {
    "Needs a Mac": "nobody has yet",
    "Needs a Mac with Xcode": "nobody has yet",
    "Needs Windows": "whoever has it",
    "Needs Windows with Visual Studio 2022": "whoever has it",
    "Needs the Android NDK": "whoever has it",
    "Needs Zig": "whoever has it",
    "Needs a fresh clone": "continuous integration begins with one",
    "Needs a terminal": "tests/cli draws on one that is made up",
    "Needs a browser": "tests/examples drives Chromium",
    "Needs clang": "tests/metal builds and runs it",
    "Needs ONNX Runtime for C++": "tests/examples builds and runs it",
    "Needs ONNX Runtime for C++ and SmolLM2": "tests/examples builds and runs it",
    "Needs Swift": "tests/examples/test_ios.py runs it",
    "Needs half an hour": "whoever releases",
    "Needs a fresh environment, and a minute": "tests/release makes one",
    "Needs g++-aarch64-linux-gnu, and qemu-user for the last command": "tests/custom_ops builds and runs it",
    "Needs the right to publish": "whoever releases",
    "Needs an hour": "whoever measures",
    "Needs texts of Debian": "whoever measures",
    "Needs several machines": "tests/runtime starts several nodes on one",
    "Needs the parity environment": "`make parity` runs in it",
    "Needs torch": "`make parity` runs in an environment that has it",
}


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: the page, the line of its fence, language, title and text."""

    page: Path
    line: int
    language: str
    title: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"

    @property
    def needs(self) -> str | None:
        return self.title if self.title.startswith("Needs ") else None

    @property
    def file(self) -> str | None:
        """The file that the block is the text of."""
        return self.title if _FILE.fullmatch(self.title) else None


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do: `command`, `python`, or the name of a file to write; and the line of the page it stands in."""

    kind: str
    line: int
    text: str


def pages() -> list[Path]:
    """Every page with commands for readers."""
    found = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
    found += sorted((ROOT / "docs").rglob("*.md"))
    return found + sorted((ROOT / "examples").glob("*/README.md"))


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page."""
    lines = page.read_text("utf-8").splitlines()
    at = 0
    while at < len(lines):
        fence = _FENCE.match(lines[at])
        at += 1
        if fence is None:
            continue
        start = at
        while at < len(lines) and lines[at].strip() != fence["ticks"]:
            at += 1
        assert at < len(lines), f"{page}:{start}: the block has no end"
        title = _TITLE.search(fence["rest"])
        text = dedent("\n".join(lines[start:at]))
        yield Block(page, start, fence["language"], title[1] if title else "", text)
        at += 1


def commands(block: Block) -> Iterator[Step]:
    """The commands of a `console` block."""
    lines = block.text.splitlines()
    at = 0
    while at < len(lines):
        line = lines[at]
        at += 1
        if not line.startswith("$ "):
            continue
        start, command = at, [line[2:]]
        while at < len(lines):
            if command[-1].endswith("\\"):
                command.append(lines[at].removeprefix("> "))
            elif lines[at].startswith("> "):
                command.append(lines[at][2:])
            elif here := _HERE.search(command[-1]):
                end = lines.index(here[2], at)
                command += lines[at : end + 1]
                at = end
            else:
                break
            at += 1
        yield Step("command", block.line + start, "\n".join(command))


def steps(page: Path) -> list[Step]:
    """What a reader of the page does here, in order."""
    found: list[Step] = []
    for block in blocks(page):
        if block.needs is not None:
            continue
        if block.file is not None:
            if not (ROOT / block.file).exists():
                found.append(Step(block.file, block.line, block.text))
        elif block.language == "console":
            found += commands(block)
        elif block.language == "python":
            found.append(Step("python", block.line, block.text))
    return found


def shown_here() -> bool:
    """Whether this is a system like the one that pages show."""
    return sys.platform == "linux" and shutil.which("bash") is not None
