"""Class 8: names and links that lead out of the checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from bounded_command import refused as command_refused
from safetensors.numpy import save
from tiny_checkpoints import CONFIG, gguf_bytes, write_directory

from bitnet_onnx.converters.checkpoints import open_checkpoint
from bitnet_onnx.errors import BitnetOnnxError, CheckpointError, InputError

ONE = save({"a": np.ones(2, np.float32)})
TWO = save({"b": np.ones(2, np.float32)})


def sharded(directory: Path, weight_map: object, **files: bytes) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name, data in files.items():
        (directory / f"{name}.safetensors").write_bytes(data)
    return directory


def refused(path: Path, message: str, error: type[BitnetOnnxError] = CheckpointError) -> None:
    with pytest.raises(error, match=message) as caught:
        open_checkpoint(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "sub/one.safetensors",
        "..\\outside.safetensors",
        "C:outside.safetensors",
        "/etc/outside.safetensors",
        "a\0.safetensors",
        "a\n.safetensors",
        "\ud800.safetensors",
        "x" * 5000 + ".safetensors",
    ],
)
def test_shard_names_that_are_no_file_names(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside.safetensors").write_bytes(ONE)
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "one.safetensors").write_bytes(ONE)
    path = sharded(tmp_path / "in", {"a": name})
    refused(path, "not a plain file name|cannot be opened")


@pytest.mark.parametrize("name", ["/dev/zero", "..", "", "config.json", "model.bin"])
def test_shard_names_of_another_kind(tmp_path: Path, name: str) -> None:
    refused(sharded(tmp_path, {"a": name}), r"is not a \.safetensors file")


@pytest.mark.parametrize("weight_map", [None, {}, [], {"a": 1}, {"a": None}, {"a": ["one.safetensors"]}])
def test_weight_map_of_another_type(tmp_path: Path, weight_map: object) -> None:
    refused(sharded(tmp_path, weight_map, one=ONE), "weight_map must map")


def test_index_and_shards_that_disagree(tmp_path: Path) -> None:
    one, two = "one.safetensors", "two.safetensors"
    refused(sharded(tmp_path / "a", {"a": one, "b": two}, one=ONE), "shard 'two.safetensors' is missing")
    refused(sharded(tmp_path / "b", {"a": one, "b": one}, one=ONE), "tensor 'b' is missing")
    refused(
        sharded(tmp_path / "c", {"b": two, "x": one}, one=ONE, two=TWO), "holds tensor 'a', but .* does not list it"
    )
    both = save({"a": np.ones(2, np.float32), "b": np.ones(2, np.float32)})
    refused(sharded(tmp_path / "d", {"a": one, "b": two}, one=both, two=TWO), "holds tensor 'b', but .* has it in 'two")
    refused(sharded(tmp_path / "e", {f"t{i}": f"{i}.safetensors" for i in range(1001)}), "1001 shards exceed")


def test_links_that_lead_out(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(ONE)
    path = write_directory(tmp_path / "in", ONE)
    (path / "model.safetensors").unlink()
    (path / "model.safetensors").symlink_to(secret)
    refused(path, "outside the checkpoint")
    path = sharded(tmp_path / "shards", {"a": "one.safetensors"})
    (path / "one.safetensors").symlink_to("../secret")
    refused(path, "outside the checkpoint")
    path = write_directory(tmp_path / "config", ONE)
    (path / "config.json").unlink()
    (path / "config.json").symlink_to("/etc/passwd")
    refused(path, "outside the checkpoint")
    path = write_directory(tmp_path / "tokenizer", ONE)
    (path / "tokenizer.json").symlink_to(secret)
    with open_checkpoint(path) as checkpoint, pytest.raises(CheckpointError, match="outside the checkpoint"):
        checkpoint.tokenizer()
    path = tmp_path / "gguf"
    path.mkdir()
    (path / "x.gguf").symlink_to(secret)
    refused(path, "outside the checkpoint")


def test_links_from_one_cache_entry_into_another(tmp_path: Path) -> None:
    blob = tmp_path / "models--org--other" / "blobs" / "abc"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(ONE)
    snapshot = write_directory(tmp_path / "models--org--mine" / "snapshots" / "1", ONE)
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(blob)
    refused(snapshot, "outside the checkpoint")
    # A folder that only looks like a part of the cache opens no door either.
    snapshot = write_directory(tmp_path / "elsewhere" / "snapshots" / "1", ONE)
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(blob)
    refused(snapshot, "outside the checkpoint")


def test_links_to_nowhere_and_round_in_a_ring(tmp_path: Path) -> None:
    path = write_directory(tmp_path, ONE)
    (path / "model.safetensors").unlink()
    (path / "model.safetensors").symlink_to("absent")
    refused(path, "cannot be opened")
    (path / "model.safetensors").unlink()
    (path / "model.safetensors").symlink_to("model.safetensors")
    refused(path, "cannot be opened")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_devices_pipes_and_folders(tmp_path: Path) -> None:
    path = write_directory(tmp_path / "a", ONE)
    (path / "model.safetensors").unlink()
    (path / "model.safetensors").symlink_to("/dev/zero")
    refused(path, "outside the checkpoint")
    (path / "model.safetensors").unlink()
    os.mkfifo(path / "model.safetensors")
    refused(path, "not a regular file")
    (path / "model.safetensors").unlink()
    (path / "model.safetensors").mkdir()
    refused(path, "not a regular file")
    os.mkfifo(tmp_path / "pipe.gguf")
    refused(tmp_path / "pipe.gguf", "not a regular file")
    (tmp_path / "zero.gguf").symlink_to("/dev/zero")
    refused(tmp_path / "zero.gguf", "not a regular file")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="everything is readable to this user")
def test_file_without_permission(tmp_path: Path) -> None:
    path = write_directory(tmp_path, ONE)
    (path / "model.safetensors").chmod(0)
    refused(path, "cannot be opened")


def test_several_gguf_files(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(gguf_bytes())
    refused(tmp_path, "2 GGUF files, name one of them", InputError)


def test_two_names_for_one_shard_on_systems_without_case(tmp_path: Path) -> None:
    """`One` and `one` are two names: the tensors of a shard belong to the name that the index gives."""
    path = sharded(tmp_path, {"a": "one.safetensors", "b": "One.safetensors"}, one=ONE, two=TWO)
    refused(path, "shard 'One.safetensors' is missing|holds tensor")


@pytest.mark.parametrize("name", ["../outside.safetensors", "/dev/zero"])
def test_the_command_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside.safetensors").write_bytes(ONE)
    source = sharded(tmp_path / "source", {"a": name})
    assert "source" in command_refused(source, tmp_path / "out")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_the_command_line_with_a_link_and_a_pipe(tmp_path: Path) -> None:
    source = write_directory(tmp_path / "source", ONE)
    (source / "model.safetensors").unlink()
    (source / "model.safetensors").symlink_to("/dev/zero")
    assert "outside the checkpoint" in command_refused(source, tmp_path / "out")
    (source / "model.safetensors").unlink()
    os.mkfifo(source / "model.safetensors")
    assert "not a regular file" in command_refused(source, tmp_path / "out")
