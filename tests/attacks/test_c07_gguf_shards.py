"""Class 7 and 8: a GGUF in several files that are not what they say."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoints import write_gguf
from tiny_gguf import gguf_tensors, metadata, tensors, write_shards

from bitnet_onnx.converters.checkpoints import _gguf_shards, open_checkpoint
from bitnet_onnx.errors import CheckpointError, InputError

VALUES = tensors("llama")


def parts(count: int = 3) -> list[dict[str, Any]]:
    stored = list(gguf_tensors("llama", VALUES).items())
    return [dict(stored[index::count]) for index in range(count)]


def refused(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(path)
    assert str(caught.value).isprintable()
    assert str(path.parent) in str(caught.value)


def test_any_part_and_the_directory_open_the_model(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, metadata("llama"), parts())
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    lines = "".join(f"{name}:{digest}\n" for name, digest in sorted(digests.items()))
    for path in (*paths, tmp_path):
        with open_checkpoint(path) as checkpoint:
            assert (checkpoint.path, checkpoint.name) == (paths[0], "tiny")
            assert checkpoint.sha256() == hashlib.sha256(lines.encode()).hexdigest()
            assert {info.file for info in checkpoint.tensors.values()} == set(digests)
            for name, values in VALUES.items():
                np.testing.assert_array_equal(checkpoint.read(name), values)


def test_links_of_the_hugging_face_cache(tmp_path: Path) -> None:
    entry = tmp_path / "models--a--b"
    (entry / "blobs").mkdir(parents=True)
    snapshot = entry / "snapshots" / "1234"
    snapshot.mkdir(parents=True)
    for index, path in enumerate(write_shards(tmp_path, metadata("llama"), parts())):
        blob = path.rename(entry / "blobs" / str(index))
        (snapshot / path.name).symlink_to(blob)
    with open_checkpoint(snapshot) as checkpoint:
        assert set(checkpoint.tensors) == set(VALUES)
    link = snapshot / "tiny-00002-of-00003.gguf"
    (tmp_path / "secret").write_bytes(link.read_bytes())
    link.unlink()
    link.symlink_to(tmp_path / "secret")
    refused(snapshot / "tiny-00001-of-00003.gguf", "outside the checkpoint")


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_missing_part(tmp_path: Path, missing: int) -> None:
    paths = write_shards(tmp_path, metadata("llama"), parts())
    paths[missing].unlink()
    refused(paths[missing - 1], rf"'tiny-0000{missing + 1}-of-00003\.gguf' is missing, one of 3 parts")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split__no": 1}, r"00003-of-00003\.gguf: split\.no is 1, expected 2"),
        ({"split__no": None}, r"no split\.no"),
        ({"split__no": "2"}, "expected an integer"),
        ({"split__count": 4}, r"split\.count is 4, expected 3"),
        ({"split__count": None}, r"no split\.count"),
        ({"split__tensors__count": 20}, r"split\.tensors\.count is 20, expected 21"),
        ({"split__tensors__count": None}, r"no split\.tensors\.count"),
        ({"general__architecture": "qwen2"}, "architecture 'qwen2', but the first part has 'llama'"),
    ],
)
def test_keys_that_lie(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    paths = write_shards(tmp_path, metadata("llama"), parts(), **changes)
    for path in paths:
        refused(path, message)


def test_tensors_twice_or_too_few(tmp_path: Path) -> None:
    double = parts()
    double[2]["token_embd.weight"] = double[0]["token_embd.weight"]
    paths = write_shards(tmp_path, metadata("llama"), double)
    refused(paths[0], r"'token_embd\.weight' is in 'tiny-00001-of-00003\.gguf' too")
    paths = write_shards(tmp_path, metadata("llama"), parts())
    total = sum(map(len, parts()))
    few = dict(list(parts()[1].items())[1:])
    keys = {"split.no": 1, "split.count": 3, "split.tensors.count": total}
    write_gguf(paths[1], keys, few)
    refused(paths[0], rf"split\.tensors\.count is {total}, but the parts hold {total - 1}")


def test_names_and_counts_that_disagree(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, metadata("llama"), parts())
    alone = paths[1].rename(tmp_path / "other.gguf")
    refused(alone, r"one of 3 parts of a model; they must be called NAME-00001-of-00003\.gguf")
    # The name of a part on a whole model.
    whole = write_gguf(tmp_path / "whole-00001-of-00002.gguf", metadata("llama"), gguf_tensors("llama", VALUES))
    refused(whole, r"no split\.tensors\.count")
    # One part of one is a whole model, with keys or without.
    single = write_gguf(tmp_path / "one-00001-of-00001.gguf", metadata("llama"), gguf_tensors("llama", VALUES))
    with open_checkpoint(single) as checkpoint:
        assert checkpoint.name == "one"
    for number in ("00000", "01001", "99999"):  # no part of anything, then: a file of its own
        path = write_gguf(tmp_path / f"n-00001-of-{number}.gguf", metadata("llama"), gguf_tensors("llama", VALUES))
        with open_checkpoint(path) as checkpoint:
            assert set(checkpoint.tensors) == set(VALUES)


def test_a_directory_with_two_models(tmp_path: Path) -> None:
    write_shards(tmp_path, metadata("llama"), parts())
    write_gguf(tmp_path / "z.gguf", metadata("llama"), gguf_tensors("llama", VALUES))
    with pytest.raises(InputError, match="4 GGUF files, name one of them"):
        open_checkpoint(tmp_path)


def test_a_part_that_is_no_regular_file(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, metadata("llama"), parts())
    paths[1].unlink()
    paths[1].symlink_to("/dev/zero")
    refused(paths[0], "outside the checkpoint")
    paths[1].unlink()
    paths[1].mkdir()
    refused(paths[0], "not a regular file")


def test_parts_share_a_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts after the first have a handful of keys; a thousand that are each at the limit would take minutes."""
    spent = _gguf_shards.Budget(elements=10)
    monkeypatch.setattr(_gguf_shards, "Budget", lambda: spent)
    path = write_shards(tmp_path, metadata("llama") | {"first": [1] * 20}, parts(), x=[1] * 10)[0]
    with open_checkpoint(path) as checkpoint:
        assert len(checkpoint.tensors) == len(VALUES)
    assert spent.elements == 0
    assert spent.tensors == 100_000 - len(parts()[1]) - len(parts()[2])
    assert spent.keys < 10_000 - 6
    assert spent.header < 64_000_000
    refused(path, "length of 'x' is 10, the limit 0")


def test_a_number_beyond_the_count(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, metadata("llama"), parts())
    stray = paths[1].rename(tmp_path / "tiny-00007-of-00003.gguf")
    refused(stray, "there is no such part of 3")
    refused(paths[0], r"tiny-00002-of-00003\.gguf' is missing")
