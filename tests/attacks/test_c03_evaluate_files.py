"""Class 3 for `evaluate`: texts and questions that are not what they say, held to 10 s and 1 GB."""

from __future__ import annotations

from pathlib import Path

import pytest
from bounded_command import run_bounded
from tiny_package import TinyShape, write_package

DEEP = b'{"query": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
CASES = {
    "a text of a terabyte": (None, "--text", "larger than the limit of 67108864 bytes"),
    "nested questions": (DEEP, "--tasks", "line 1: JSON nests deeper than 64 levels"),
    "a key twice": (b'{"query": "a", "query": "b"}', "--tasks", "line 1: key 'query' appears twice"),
    "a huge index": (
        b'{"query": "a", "choices": ["b", "c"], "gold": ' + b"9" * 100_000 + b"}",
        "--tasks",
        "line 1: integer '999",
    ),
    "no end of line": (b"x" * (64 << 20), "--tasks", "line 1 is longer than the limit of 4194304 bytes"),
}


@pytest.mark.parametrize("name", CASES)
def test_refused_in_one_line(name: str, tmp_path: Path) -> None:
    content, option, message = CASES[name]
    package, file, folder = tmp_path / "package", tmp_path / "file", tmp_path / "empty"
    package.mkdir()
    folder.mkdir()
    write_package(package, TinyShape(context_length=512))
    with file.open("wb") as handle:
        if content is None:
            handle.truncate(1 << 40)
        else:
            handle.write(content)
    ended = run_bounded("evaluate", package, option, file, folder=folder)
    assert (ended.status, ended.out) == (2, "")
    (line,) = ended.err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert len(line) < 1000
    assert list(folder.iterdir()) == []
