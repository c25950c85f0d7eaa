"""Tokens on disk: the same as of the whole text, kept, checked, and written again when anything changed."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from constrained import sentencepiece_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from training_texts import chat, data_tokenizer, write_lines

from bitnet_onnx.errors import InputError
from bitnet_onnx.training.data import Counts, DataTokenizer, open_data, read_texts, train_tokenizer
from bitnet_onnx.training.data import _tokenization as tokenization
from bitnet_onnx.training.data._sources import PIECE, holdout_start
from bitnet_onnx.training.data.cache import TokenFile, TokenWriter, written
from bitnet_onnx.training.settings import DataSettings

#: Some pieces long, with empty lines, indented ones and characters of two to four bytes.
LONG = "".join(f"{n} Wörter für die \U0001f600 Zeile\n{'    tief' if n % 7 == 0 else ''}\n" for n in range(8000))


def tokens(path: Path, tokenizer: DataTokenizer, cache: Path, **settings: object) -> TokenFile:
    made = DataSettings((path,), length=1, **settings)  # type: ignore[arg-type]
    return open_data(made, tokenizer, seed=0, cache=cache).train.windows.files[0]


def test_pieces_give_the_tokens_of_the_whole_text(tmp_path: Path) -> None:
    assert len(LONG) > 3 * PIECE
    files = train_tokenizer([LONG], 400)
    tokenizer = DataTokenizer.from_files(files, vocab_size=400, source=tmp_path)
    path = tmp_path / "a.txt"
    path.write_bytes(LONG.encode())
    file = tokens(path, tokenizer, tmp_path / "cache")
    whole = tokenizer.text.encode(LONG, parse_special=False, add_bos=True)
    assert file.ids(0, file.counts.tokens).tolist() == [*whole, tokenizer.end]
    assert file.counts == Counts(len(whole) + 1, 1, len(whole), len(LONG.encode()))
    assert file.learned(0, file.counts.tokens).tolist() == [False, *[True] * len(whole)]


def test_a_piece_from_the_middle_is_no_beginning_for_sentencepiece(tmp_path: Path) -> None:
    tokenizer = data_tokenizer(None, inner=sentencepiece_tokenizer(), eos_token="</s>", bos_token="<s>")
    text = "yes no\n" * (2 * PIECE // 7)
    (tmp_path / "a.txt").write_bytes(text.encode())
    file = tokens(tmp_path / "a.txt", tokenizer, tmp_path / "cache")
    whole = tokenizer.text.encode(text, parse_special=False, add_bos=False)
    assert file.ids(0, file.counts.tokens).tolist() == [*whole, 2]


def test_control_tokens_in_texts_are_text(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"text": "a<|endoftext|>b"}, {"text": ""}, {"text": "c"}])
    tokenizer = data_tokenizer()
    file = tokens(path, tokenizer, tmp_path / "cache")
    assert file.ids(0, file.counts.tokens).tolist().count(tokenizer.end or -1) == 2
    assert file.counts.documents == 2


def test_the_cache_is_used_until_something_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cache = tmp_path / "a.txt", tmp_path / "cache"
    path.write_text("one two three\n" * 10)
    tokenizer = data_tokenizer()
    first = tokens(path, tokenizer, cache)
    monkeypatch.setattr(tokenization, "written", None)
    os.utime(path, (1, 1))
    again = tokens(path, tokenizer, cache, answers_only=False)
    assert again.key == first.key
    monkeypatch.undo()
    path.write_text("one two three\n" * 9 + "one two thref\n")
    keys = {first.key, tokens(path, tokenizer, cache).key}
    keys |= {tokens(path, data_tokenizer(vocab_size=513), cache).key, tokens(path, tokenizer, cache, holdout=0.3).key}
    assert len(keys) == 4
    assert all(one.suffix == ".tokens" for one in cache.iterdir())


@pytest.mark.parametrize("harm", ["cut", "longer", "id", "bit", "header", "magic", "empty", "counts"])
def test_a_broken_cache_is_written_again(tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: str) -> None:
    path, cache = tmp_path / "a.txt", tmp_path / "cache"
    path.write_text("one two three\n" * 10)
    tokens(path, data_tokenizer(), cache)
    (file,) = cache.iterdir()
    good = file.read_bytes()
    bad = bytearray(good)
    if harm == "cut":
        del bad[-1]
    elif harm == "longer":
        bad += b"\0"
    elif harm == "empty":
        bad.clear()
    elif harm == "counts":
        bad[:] = bad.replace(b'"documents": 1', b'"documents":-1')
    else:
        bad[{"id": 1025, "bit": -1, "header": 10, "magic": 0}[harm]] ^= 0x55
    file.write_bytes(bad)
    with caplog.at_level(logging.WARNING):
        tokens(path, data_tokenizer(), cache)
    assert "no usable cache of tokens" in caplog.text
    assert file.read_bytes() == good
    assert list(cache.iterdir()) == [file]


@given(st.lists(st.lists(st.tuples(st.integers(0, 69_999), st.booleans()), max_size=40), max_size=12), st.data())
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, runs: list[list[tuple[int, bool]]], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("tokens") / "a.tokens"
    flat = [one for run in runs for one in run]
    with pytest.MonkeyPatch.context() as patch, written(path, 70_000) as writer:
        patch.setattr("bitnet_onnx.training.data.cache._SMALL", 16)
        for run in runs:
            writer.add([token for token, _ in run], np.array([flag for _, flag in run], bool), documents=1, size=2)
        writer.finish("key", Path("a.txt"))
    file = TokenFile.open(path, Path("a.txt"), "key", 70_000)
    assert file.counts == Counts(len(flat), len(runs), sum(flag for _, flag in flat), 2 * len(runs))
    start = data.draw(st.integers(0, len(flat)))
    stop = data.draw(st.integers(start, len(flat)))
    assert file.ids(start, stop).tolist() == [token for token, _ in flat[start:stop]]
    assert file.learned(start, stop).tolist() == [flag for _, flag in flat[start:stop]]


def test_an_error_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"text": "fine " * 100_000}, {"words": "none"}])
    with pytest.raises(InputError, match=r"a\.jsonl: line 2: a line has either text or messages"):
        tokens(path, data_tokenizer(), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("when", ["ids", "bits", "end"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    class Full:
        """A disk with no more room."""

        def __init__(self, file: IO[bytes], room: int) -> None:
            self._file, self._room = file, room

        def write(self, data: bytes) -> int:
            self._room -= len(data)
            if self._room < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self._file.write(data)

        def __getattr__(self, name: str) -> object:
            return getattr(self._file, name)

    create = TokenWriter.__init__

    def full(self: TokenWriter, file: IO[bytes], bits: IO[bytes], vocab_size: int) -> None:
        rooms = {"ids": (2000, 9**9), "bits": (9**9, 10), "end": (1024 + 20_002, 9**9)}[when]
        create(self, Full(file, rooms[0]), Full(bits, rooms[1]), vocab_size)  # type: ignore[arg-type]

    monkeypatch.setattr(TokenWriter, "__init__", full)
    (tmp_path / "a.txt").write_text("a" * 10_000)
    with pytest.raises(InputError, match=r"\.tokens: cannot be written: No space left on device \(\d+ bytes free\)"):
        tokens(tmp_path / "a.txt", data_tokenizer(), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_source_that_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a" * 1000)
    flush = tokenization._Tokens.flush

    def change(self: tokenization._Tokens) -> None:
        flush(self)
        path.write_text("b" * 1000 + "c")

    monkeypatch.setattr(tokenization._Tokens, "flush", change)
    with pytest.raises(InputError, match="changed while it was read"):
        tokens(path, data_tokenizer(), tmp_path / "cache")


def test_progress_ends_with_all_bytes_and_never_goes_back(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(LONG.encode() * 6)
    (tmp_path / "b.txt").write_text("short\n" * 100)
    settings = DataSettings((tmp_path / "a.txt", tmp_path / "b.txt"), holdout=0.1)
    total = sum(path.stat().st_size for path in settings.train)
    for _ in range(2):
        seen: list[tuple[int, int]] = []
        open_data(
            settings,
            data_tokenizer(),
            seed=0,
            cache=tmp_path / "cache",
            progress=lambda *both, seen=seen: seen.append(both),  # type: ignore[misc]
        )
        assert seen == sorted(seen)
        assert seen[-1] == (total, total)


@pytest.mark.parametrize(
    ("text", "share", "kept"),
    [
        ("one\ntwo\nthree\nfour\n", 0.3, "one\ntwo\nthree\n"),
        ("one\ntwo\nthree\nfour\n", 0.01, "one\ntwo\nthree\n"),
        ("one\ntwo\nthree", 0.1, "one\ntwo\n"),
        ("one two three four", 0.5, "one two three"),
        ("ééééé", 0.45, "ééé"),
        ("one\n", 0.0, "one\n"),
    ],
)
def test_where_the_holdout_begins(tmp_path: Path, text: str, share: float, kept: str) -> None:
    (tmp_path / "a.txt").write_bytes(text.encode())
    start = holdout_start(tmp_path / "a.txt", share)
    assert text.encode()[:start].decode() == kept


def test_a_holdout_of_lines_keeps_their_numbers(tmp_path: Path) -> None:
    lines: list[object] = [{"text": f"{index}" * 40} for index in range(10)]
    path = write_lines(tmp_path / "a.jsonl", [*lines, {}])
    with pytest.raises(InputError, match="line 11: a line has either"):
        tokens(path, data_tokenizer(), tmp_path / "cache", holdout=0.2)
    write_lines(path, lines)
    settings = DataSettings((path,), length=1, holdout=0.2)
    assert "".join(read_texts(settings)) == "".join(f"{index}" * 40 for index in range(8))
    data = open_data(settings, data_tokenizer(), seed=0, cache=tmp_path / "cache")
    assert data.validation is not None
    assert (data.train.windows.counts.documents, data.validation.windows.counts.documents) == (8, 2)


def test_a_tokenizer_of_the_texts(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"text": "the word and the world " * 20}, chat("the question", "and")])
    texts = list(read_texts(DataSettings((path,))))
    assert texts[1:] == ["the question", "and"]
    files = train_tokenizer(texts, 300)
    assert files == train_tokenizer(iter(texts), 300)
    tokenizer = DataTokenizer.from_files(files, vocab_size=300, source=tmp_path)
    assert (tokenizer.beginning, tokenizer.end, tokenizer.lead) == ((0,), 1, ())
    text = "the wörld \U0001f600\n\n  x"
    ids = tokenizer.text.encode(text, parse_special=False, add_bos=True)
    assert ids[0] == 0
    assert tokenizer.text.decode(ids) == text
    assert len(tokenizer.text.encode(" the", parse_special=False, add_bos=False)) == 1
    for size in (257, 1 << 21):
        with pytest.raises(InputError, match=f"vocab_size is {size}, expected 258 to 1048576"):
            train_tokenizer(texts, size)
