"""Every command and every program in the documentation runs as it stands there, page by page.

README.md, CONTRIBUTING.md, SECURITY.md, docs/ and the README of each example. `doc_session.py` says what is not as on a
reader's screen; what is left out is left out by name, and skipped with its reason.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from doc_pages import REASONS, ROOT, SHELLS, Block, blocks, commands, pages, shown_here, steps
from doc_session import made_by, programs, run, targets

BLOCKS = [block for page in pages() for block in blocks(page)]
LEFT_OUT = [block for block in BLOCKS if block.needs is not None]


def page_cases() -> list[object]:
    cases = []
    for page in pages():
        if found := steps(page):
            uses_zoo = any("smollm2" in step.text for step in found if step.kind in {"command", "python"})
            name = page.relative_to(ROOT).as_posix()
            cases.append(pytest.param(page, id=name, marks=pytest.mark.zoo if uses_zoo else ()))
    return cases


@pytest.mark.skipif(not shown_here(), reason="pages show what is typed on Linux")
@pytest.mark.parametrize("page", page_cases())
def test_what_a_page_shows_runs(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    for program in sorted(programs(steps(page))):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    if request.node.get_closest_marker("zoo") is not None:
        request.getfixturevalue("zoo_model")
    before = changed_files()
    run(page.relative_to(ROOT).as_posix(), steps(page), tmp_path / "clone")
    assert changed_files() == before
    # Models and builds add up over the pages.
    shutil.rmtree(tmp_path / "clone")


@pytest.mark.parametrize("block", LEFT_OUT, ids=lambda block: block.where)
def test_what_is_left_out_says_why(block: Block) -> None:
    assert block.needs in REASONS, f"{block.where}: {block.title!r} is not in the list of reasons in doc_pages.py"
    pytest.skip(f"{block.where}: {block.needs}: {REASONS[block.needs]}")


def test_make_is_told_targets_that_exist() -> None:
    """`make TARGET` is what continuous integration and developers run: a page's shell does not."""
    known = targets(ROOT / "Makefile")
    named = [
        (f"{block.where}: {step.text}", goal)
        for block in BLOCKS
        if block.language == "console"
        for step in commands(block)
        for goal in made_by(step.text) or ()
    ]
    assert {"test", "lint", "parity", "demo"} <= {goal for _, goal in named}
    assert [where for where, goal in named if goal not in known] == []


def test_no_command_escapes() -> None:
    """Blocks of a shell are `console` blocks with commands, and nothing else looks like one."""
    for block in BLOCKS:
        assert block.language not in SHELLS, f"{block.where}: commands belong in a `console` block"
        shown = any(line.startswith("$ ") for line in block.text.splitlines())
        assert shown == (block.language == "console"), f"{block.where}: `$ ` and `console` belong together"


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.file is not None and (ROOT / b.file).exists()], ids=lambda block: block.where
)
def test_quoted_files_have_these_lines(block: Block) -> None:
    assert block.file is not None
    assert block.text in (ROOT / block.file).read_text("utf-8"), f"{block.where}: {block.file} does not say this"


def changed_files() -> str | None:
    """What git finds changed; None where this is no clone."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        return None
    return subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
