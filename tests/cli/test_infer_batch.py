"""`bitnet-onnx infer --batch`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bitnet_onnx.runtime.kv_calibration import write_kv_scales


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "abc", "id": "one"}\n{"prompt": [1, 42, 7], "max_new_tokens": 5}\n{"prompt": 3}\n')
    return path


def test_a_file_is_answered_and_continued(run, tiny_package: Path, lines: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    arguments = ("infer", tiny_package, "--batch", lines, "--out", out, "--max-new-tokens", "8", "--threads", "1")
    result = run(*arguments, "--max-batch", "2", "--memory", "200MB")
    assert (result.status, result.out) == (0, "")
    assert result.err == "3 lines answered, 1 of them with an error, 0 kept from before\n"
    whole = out.read_bytes()
    first, second, third = map(json.loads, whole.splitlines())
    alone = ("infer", tiny_package, "--json", "--threads", "1")
    (tmp_path / "ids.json").write_text("[1, 42, 7]")
    expected = json.loads(run(*alone, "--prompt", "abc", "--max-new-tokens", "8").out)
    assert (first["id"], first["text"]) == ("one", expected["text"])
    expected = json.loads(run(*alone, "--ids-file", tmp_path / "ids.json", "--max-new-tokens", "5").out)
    assert (second["text"], second["finish_reason"]) == (expected["text"], expected["finish_reason"])
    assert "neither a text" in third["error"]
    out.write_bytes(whole[:-30])
    assert "1 lines answered, 1 of them with an error, 2 kept" in run(*arguments).err
    assert out.read_bytes() == whole


def test_keys_and_values_as_int8(run, refused, tiny_package: Path, lines: Path, tmp_path: Path) -> None:
    package, out = tmp_path / "package", tmp_path / "answers.jsonl"
    shutil.copytree(tiny_package, package)
    write_kv_scales(package, tokens=64, threads=1)
    arguments = ("infer", package, "--batch", lines, "--out", out, "--max-new-tokens", "8", "--threads", "1")
    assert run(*arguments, "--kv", "int8").status == 0
    alone = ("infer", package, "--prompt", "abc", "--json", "--threads", "1", "--max-new-tokens", "8")
    expected = json.loads(run(*alone, "--kv", "int8").out)
    assert json.loads(out.read_bytes().splitlines()[0])["text"] == expected["text"]
    # A file of answers is of one type: those of the other one are others.
    assert "with this package and these options" in refused(*arguments)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--batch", "LINES"), "belong together"),
        (("--out", "OUT"), "belong together"),
        (("--batch", "LINES", "--out", "OUT", "--prompt", "a"), "excludes"),
        (("--batch", "LINES", "--out", "OUT", "--chat"), "excludes"),
        (("--batch", "LINES", "--out", "OUT", "--json"), "excludes"),
        (("--prompt", "a", "--memory", "4GiB"), "belongs to --batch"),
        (("--batch", "LINES", "--out", "OUT", "--memory", "much"), "memory size 'much'"),
        (("--batch", "LINES", "--out", "OUT", "--max-batch", "0"), "max_batch is 0"),
        (("--batch", "absent.jsonl", "--out", "OUT"), "absent.jsonl: cannot be opened"),
    ],
)
def test_wrong_options(refused, tiny_package: Path, lines: Path, tmp_path: Path, options: tuple, words: str) -> None:
    out = tmp_path / "answers.jsonl"
    named = [{"LINES": str(lines), "OUT": str(out)}.get(option, option) for option in options]
    assert words in refused("infer", tiny_package, *named)
    assert not out.exists()


def test_a_budget_that_is_too_small(run, tiny_package: Path, lines: Path, tmp_path: Path) -> None:
    result = run("infer", tiny_package, "--batch", lines, "--out", tmp_path / "answers.jsonl", "--memory", "1kB")
    assert result.status == 1
    assert "1000 bytes has no room" in result.err
