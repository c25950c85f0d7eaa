"""The runner of the documentation's commands: what it takes for a command, and what it says of one that fails."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from doc_pages import REASONS, Block, Step, blocks, commands, shown_here, steps
from doc_session import made_by, programs, run, targets

SUPPORT = Path(__file__).resolve().parent.parent / "support"

linux = pytest.mark.skipif(not shown_here(), reason="pages show what is typed on Linux")


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page that is not of this repository."""
    monkeypatch.setattr("doc_pages.ROOT", tmp_path)
    return tmp_path / "page.md"


def test_commands_go_on_behind_a_backslash_in_prompts_and_here_documents(page: Path) -> None:
    text = "\n".join(
        [
            "$ one \\",
            "    two",
            "output",
            "$ for x in a; do",
            ">   echo $x",
            "> done",
            "$ cat <<'EOF'",
            "$ no command",
            "EOF",
            "$ last",
        ]
    )
    found = list(commands(Block(page, 10, "console", "", text)))
    assert [(step.line, step.text) for step in found] == [
        (11, "one \\\n    two"),
        (14, "for x in a; do\n  echo $x\ndone"),
        (17, "cat <<'EOF'\n$ no command\nEOF"),
        (20, "last"),
    ]


def test_blocks_have_their_line_language_title_and_text(page: Path) -> None:
    page.write_text(
        'text\n\n```toml title="run.toml"\na = 1\n```\n\n- in a list\n\n    ```console\n    $ ls\n    ```\n'
    )
    first, second = blocks(page)
    assert (first.line, first.language, first.file, first.text) == (3, "toml", "run.toml", "a = 1")
    assert (second.line, second.language, second.file, second.text) == (9, "console", None, "$ ls")


def test_a_block_that_needs_something_is_left_out(page: Path) -> None:
    page.write_text('```console title="Needs a Mac"\n$ false\n```\n\n```console title="Needs luck"\n$ false\n```\n')
    assert steps(page) == []
    assert "Needs a Mac" in REASONS
    assert "Needs luck" not in REASONS


@linux
def test_a_page_is_one_session_and_each_program_its_own(page: Path, tmp_path: Path) -> None:
    page.write_text(
        """
```json title="made/data.json"
{"answer": 42}
```

```console
$ export GREETING=hello
$ cd made
```

```console
$ echo "$GREETING" && cat data.json
```

```python
import json
print(json.load(open("data.json"))["answer"] + 1)
```
"""
    )
    said = run("page.md", steps(page), tmp_path / "clone")
    assert "hello\n" in said
    assert '{"answer": 42}' in said
    assert "43" in said
    assert (tmp_path / "clone" / "README.md").is_file()


@linux
def test_the_first_failure_is_named_with_its_page_and_line(page: Path, tmp_path: Path) -> None:
    page.write_text("```console\n$ echo fine\n$ echo complaint; false\n$ echo never > never\n```\n")
    with pytest.raises(AssertionError, match=r"page\.md:3: status 1\necho complaint; false\ncomplaint") as failure:
        run("page.md", steps(page), tmp_path / "clone")
    assert "fine" not in str(failure.value)
    assert not (tmp_path / "clone" / "never").exists()


@linux
def test_a_server_is_waited_for_on_a_port_of_its_own_and_ended(page: Path, tmp_path: Path) -> None:
    page.write_text(
        "```console\n$ python -m http.server --bind 127.0.0.1 8000 &\n"
        "$ curl -sf http://127.0.0.1:8000/held-out.txt -o got.txt\n$ echo $! > pid\n```\n"
    )
    run("page.md", steps(page), tmp_path / "clone")
    clone = tmp_path / "clone"
    assert (clone / "got.txt").read_text() == (clone / "held-out.txt").read_text()
    assert subprocess.run(["kill", "-0", (clone / "pid").read_text().strip()], capture_output=True).returncode != 0
    assert "8000" not in (tmp_path / "session" / "script").read_text().partition("@@2")[2]


@linux
def test_a_server_that_does_not_start_is_a_failure(page: Path, tmp_path: Path) -> None:
    page.write_text("```console\n$ bitnet-onnx serve no-such-package &\n$ true\n```\n")
    with pytest.raises(AssertionError, match=r"page\.md:2: status 1(.|\n)*no-such-package: no such directory"):
        run("page.md", steps(page), tmp_path / "clone")


def test_programs_of_others_are_found_where_a_command_begins() -> None:
    texts = [
        "cd examples/node && npm ci",
        "CC=gcc cmake -S .",
        "echo node curl",
        "bitnet-onnx ops | node x.js",
        "pip install cmake",
    ]
    assert [programs([Step("command", 1, text)]) for text in texts] == [{"npm"}, {"cmake"}, set(), {"node"}, set()]


@linux
def test_npm_ci_takes_what_is_unpacked_and_is_npm_otherwise(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = "{}"
    kept = tmp_path / "cache" / "npm" / f"app-{hashlib.sha256(lock.encode()).hexdigest()[:16]}" / "node_modules"
    kept.mkdir(parents=True)
    (kept / "mark").write_text("there")
    real = tmp_path / "real" / "npm"
    real.parent.mkdir()
    real.write_text('#!/bin/sh\necho "npm itself: $*"\n')
    real.chmod(0o755)
    monkeypatch.setenv("BITNET_ONNX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{real.parent}:{os.environ['PATH']}")
    page.write_text(
        f"""```json title="app/package-lock.json"
{lock}
```

```console
$ printf '{lock}' > app/package-lock.json
$ cd app && npm ci && cat node_modules/mark
$ npm run build
```
"""
    )
    said = run("page.md", steps(page), tmp_path / "clone")
    assert "there" in said
    assert "npm itself: run build" in said
    assert "npm itself: ci" not in said


def test_make_is_told_apart_from_commands(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text("X := 1\n.PHONY: lint\nlint: a ## Check\nfuzz-all:\n\techo no: target\n")
    assert targets(tmp_path / "Makefile") == {"lint", "fuzz-all"}
    assert made_by("make lint PYTHON=python3.13  # a comment") == ["lint"]
    assert made_by("make") == []
    assert made_by("cmake --build .") is None


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["install", "."], None),
        (["install", "bitnet-onnx[serve,train]"], None),
        (["install", "dist/bitnet_onnx-0.1.0-py3-none-any.whl[serve]", "numpy"], None),
        (["install", "bitnet-onnx[no-such-extra]"], "no extra 'no-such-extra'"),
        (["install", "no-such-package-at-all"], "not installed here"),
        (["install", "numpy<1"], "does not take"),
        (["install", "git+https://example.org/x"], "no requirement"),
        (["uninstall", "numpy"], "only use `pip install`"),
        (["install"], "nothing is named"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_pip_checks_what_it_would_install(words: list[str], complaint: str | None) -> None:
    result = subprocess.run(
        [sys.executable, "-P", str(SUPPORT / "doc_pip.py"), *words], capture_output=True, text=True, encoding="utf-8"
    )
    assert (result.returncode == 0) == (complaint is None), result.stderr
    assert (complaint or "") in result.stderr
