"""Class 3, data of a training run: lines that are too long, too deep, no JSON, no text; files that are none."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training_texts import data_tokenizer

from bitnet_onnx.errors import InputError
from bitnet_onnx.training.data import open_data, train_tokenizer
from bitnet_onnx.training.data._sources import MAX_LINE_BYTES
from bitnet_onnx.training.settings import DataSettings

GOOD = b'{"text": "good"}\n'
LINES = {
    "depth": (b'{"text":' + b"[" * 1_000_000, "nests deeper than 64 levels"),
    "items": (b'{"text": "", "x": [' + b"0," * 3_000_000 + b"0]}", "exceeds the limit of 2500000"),
    "length": (b'{"text": "' + b"a" * MAX_LINE_BYTES + b'"}', "is longer than 16777216 bytes"),
    "no JSON": (b"{'text': 1}", "not JSON"),
    "cut": (b'{"text": "a', "not JSON"),
    "a list": (b'["text"]', "a JSON object is expected, this is list"),
    "twice": (b'{"text": "a", "text": "b"}', "appears twice"),
    "NaN": (b'{"text": "a", "score": NaN}', "NaN is not JSON"),
    "huge": (b'{"text": "a", "score": 1' + b"0" * 100_000 + b"}", "does not fit 64 bits"),
    "Latin-1": (b'{"text": "\xe9"}', "byte 10 is not UTF-8"),
    "UTF-16": ('{"text": "a"}'.encode("utf-16"), "is not UTF-8"),
    "number": (b'{"text": 5}', "text is a int, expected a string"),
    "neither": (b'{"content": "a"}', "either text or messages"),
    "both": (b'{"text": "a", "messages": []}', "either text or messages"),
    "surrogate": (b'{"text": "\\ud800"}', "lone surrogate at character 0"),
    "message": (b'{"messages": ["a"]}', "message 1: a message is an object"),
    "field": (b'{"messages": [{"role": "user", "content": "a", "x": 1}]}', "message 1: a message is an object"),
}


def refused(path: Path, cache: Path) -> str:
    started = time.process_time()
    with pytest.raises(InputError) as caught:
        open_data(DataSettings((path,), length=1), data_tokenizer(), seed=0, cache=cache)
    assert time.process_time() - started < 10
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 600
    assert message.startswith(str(path))
    assert not cache.exists() or list(cache.iterdir()) == []
    return message


@pytest.mark.parametrize("name", LINES)
def test_a_line_that_is_wrong_is_named(tmp_path: Path, name: str) -> None:
    line, said = LINES[name]
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD + b"\n" + line + b"\n" + GOOD)
    message = refused(path, tmp_path / "cache")
    assert ": line 3" in message
    assert said in message


@pytest.mark.parametrize("place", [0, 5, (1 << 20) - 1, (1 << 20) + 2])
def test_a_text_that_is_no_utf8_says_where(tmp_path: Path, place: int) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a" * place + b"\xff" + b"b" * 10)
    assert f"not UTF-8 at byte {place};" in refused(path, tmp_path / "cache")


def test_a_character_that_is_cut_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"abc\xf0\x9f\x98")
    assert "not UTF-8 at byte 3;" in refused(path, tmp_path / "cache")


def test_a_mark_of_byte_order_is_no_text(tmp_path: Path) -> None:
    for name, data in (("a.txt", b"good"), ("a.jsonl", GOOD)):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + data)
        settings = DataSettings((tmp_path / name,), length=1)
        file = open_data(settings, data_tokenizer(), seed=0, cache=tmp_path / "cache").train.windows.files[0]
        assert data_tokenizer().text.decode(file.ids(0, 4).tolist()) == "good"


def test_what_is_no_file(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "absent.txt", tmp_path / "cache")
    assert "no such file" in refused(tmp_path, tmp_path / "cache")
    assert "no such file" in refused(Path(os.devnull), tmp_path / "cache")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.jsonl")
        assert "no such file" in refused(tmp_path / "pipe.jsonl", tmp_path / "cache")


def test_one_line_cannot_be_divided(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    with pytest.raises(InputError, match=r"a\.jsonl: one line cannot be divided for a holdout"):
        open_data(
            DataSettings((tmp_path / "a.jsonl",), holdout=0.1), data_tokenizer(), seed=0, cache=tmp_path / "cache"
        )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train": ()}, "data.train names no file"),
        ({"holdout": 0.6}, "data.holdout is 0.6, expected 0 to 0.5"),
        ({"holdout": float("nan")}, "data.holdout is nan"),
        ({"length": 0}, "data.length is 0, expected 1 to 1048576"),
        ({"length": 1 << 40}, "data.length is 1099511627776"),
        ({"validation": (Path("absent.txt"),)}, r"absent\.txt: no such file"),
    ],
)
def test_impossible_settings(tmp_path: Path, change: dict[str, object], said: str) -> None:
    (tmp_path / "a.txt").write_text("a")
    settings = DataSettings(**{"train": (tmp_path / "a.txt",), **change})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=said):
        open_data(settings, data_tokenizer(), seed=0, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_word_without_end_does_not_hold_the_trainer_up() -> None:
    started = time.process_time()
    train_tokenizer(["x" * (4 << 20), " " * (1 << 20)], 300)
    assert time.process_time() - started < 10


BOUNDED = """
import resource, sys
from pathlib import Path
from training_texts import data_tokenizer
from bitnet_onnx.training.data import open_data
from bitnet_onnx.training.settings import DataSettings
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = open_data(DataSettings((Path(sys.argv[1]),)), data_tokenizer(None), seed=0, cache=Path(sys.argv[2]))
print(data.train.windows.counts.tokens, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is that of Linux")
@pytest.mark.parametrize("line", [b"0123 45\n", b"x"], ids=["lines", "no line end"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, line: bytes) -> None:
    size = 4 << 20
    (tmp_path / "a.txt").write_bytes(line * (size // len(line)))
    found = subprocess.run(
        [sys.executable, "-P", "-c", BOUNDED, tmp_path / "a.txt", tmp_path / "cache"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "support")},
    )
    tokens, kilobytes = map(int, found.stdout.split())
    assert tokens == size + 1
    # All of its tokens at once would take the library gigabytes.
    assert kilobytes < 600_000


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of file sizes")
def test_a_limit_of_file_sizes_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"0123 45\n" * 100_000)
    script = BOUNDED.replace("data =", "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\ndata =")
    found = subprocess.run(
        [sys.executable, "-P", "-c", script, tmp_path / "a.txt", tmp_path / "cache"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "support"), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert ".tokens: cannot be written: File too large (" in found.stderr.splitlines()[-1]
    assert list((tmp_path / "cache").iterdir()) == []
    assert found.stdout == ""
