"""Hugging Face directories against the safetensors package."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import save
from tiny_checkpoints import CONFIG, entry, safetensors_bytes, write_directory
from tokenizers import Tokenizer, models

from bitnet_onnx.converters.checkpoints import Checkpoint, TensorInfo, open_checkpoint
from bitnet_onnx.errors import CheckpointError, InputError, UnsupportedError


def bfloat16(values: np.ndarray) -> bytes:
    """Truncated to bfloat16: the upper halves of the float32 words."""
    return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()


def word_tokenizer(size: int = 10) -> bytes:
    return Tokenizer(models.WordLevel({f"t{i}": i for i in range(size)}, unk_token="t0")).to_str().encode()


@given(
    values=arrays.arrays(
        np.float32,
        arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=7),
        elements=st.floats(-1e4, 1e4, width=16),
    ),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
)
def test_round_trip_with_the_safetensors_package(tmp_path_factory, values, dtype) -> None:
    stored = np.asarray(values).astype(dtype)
    path = write_directory(tmp_path_factory.mktemp("hf"), save({"w": stored, "other": np.ones(3, np.float32)}))
    with open_checkpoint(path) as checkpoint:
        read = checkpoint.read("w")
        assert read.dtype == np.float32
        assert read.shape == values.shape
        np.testing.assert_array_equal(read, values)
        assert checkpoint.tensors["w"].shape == values.shape


def test_bfloat16_is_the_upper_half_of_float32(opened, tmp_path: Path) -> None:
    values = np.array([[1.0, -2.5, 3.0e38], [1.0e-40, 0.0, -0.0]], np.float32)
    path = write_directory(tmp_path, safetensors_bytes({"w": entry("BF16", [2, 3], 0, 12)}, bfloat16(values)))
    expected = np.frombuffer((np.frombuffer(bfloat16(values), "<u2").astype("<u4") << 16).tobytes(), "<f4")
    read = opened(path).read("w")
    np.testing.assert_array_equal(read.view(np.uint32), expected.reshape(2, 3).view(np.uint32))


def test_large_tensors_are_decoded_in_pieces(opened, tmp_path: Path) -> None:
    values = np.arange((1 << 20) + 1000, dtype=np.float32)
    values = (values % 251).reshape(-1, 8)
    path = write_directory(tmp_path, save({"a": np.ones(3, np.float32), "w": values.astype(np.float16)}))
    checkpoint = opened(path)
    np.testing.assert_array_equal(checkpoint.read("w"), values)
    np.testing.assert_array_equal(checkpoint.read_rows("w", 131_000, 131_100), values[131_000:131_100])


def test_rows(opened, tmp_path: Path) -> None:
    values = np.arange(20, dtype=np.float32).reshape(5, 4)
    checkpoint = opened(write_directory(tmp_path, save({"w": values, "v": values[0].copy()})))
    np.testing.assert_array_equal(checkpoint.read_rows("w", 1, 3), values[1:3])
    assert checkpoint.read_rows("w", 2, 2).shape == (0, 4)
    for name, start, stop in (("w", 0, 6), ("w", -1, 2), ("w", 3, 2), ("v", 0, 1), ("absent", 0, 1)):
        with pytest.raises(CheckpointError, match=name):
            checkpoint.read_rows(name, start, stop)


def test_reads_do_not_alias_each_other(opened, tmp_path: Path) -> None:
    checkpoint = opened(write_directory(tmp_path, save({"w": np.ones((2, 2), np.float32)})))
    checkpoint.read("w")[:] = 7
    np.testing.assert_array_equal(checkpoint.read("w"), np.ones((2, 2), np.float32))


@pytest.mark.parametrize(("kind", "name"), [(np.int8, "I8"), (np.int64, "I64")])
def test_integers_are_no_weights(opened, tmp_path: Path, kind: type, name: str) -> None:
    checkpoint = opened(write_directory(tmp_path, save({"w": np.ones(2, kind)})))
    with pytest.raises(UnsupportedError, match=f"'w' is {name}"):
        checkpoint.read("w")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_values_that_are_not_finite_are_refused_with_the_tensor_named(
    opened, tmp_path: Path, bad: float, dtype
) -> None:
    values = np.zeros((3, 4), dtype)
    values[2, 1] = bad
    checkpoint = opened(write_directory(tmp_path, save({"model.w": values})))
    with pytest.raises(CheckpointError, match=r"tensor 'model\.w' holds .* at element 9"):
        checkpoint.read("model.w")
    np.testing.assert_array_equal(checkpoint.read_rows("model.w", 0, 2), np.zeros((2, 4)))


def sharded(directory: Path) -> dict[str, np.ndarray]:
    tensors = {f"w{i}": np.full((2, i + 1), i, np.float32) for i in range(4)}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    files = {f"model-0000{n}-of-00002.safetensors": [f"w{2 * n - 2}", f"w{2 * n - 1}"] for n in (1, 2)}
    for file, names in files.items():
        (directory / file).write_bytes(save({name: tensors[name] for name in names}))
    weight_map = {name: file for file, names in files.items() for name in names}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tensors


def test_shards(tmp_path: Path) -> None:
    tensors = sharded(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.tensors.keys() == tensors.keys()
        for name, values in tensors.items():
            np.testing.assert_array_equal(checkpoint.read(name), values)
        assert checkpoint.tensors["w3"] == TensorInfo("w3", (2, 4), "F32", 32, "model-00002-of-00002.safetensors")
        lines = "".join(
            f"{path.name}:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"
            for path in sorted(tmp_path.glob("*.safetensors"))
        )
        assert checkpoint.sha256() == hashlib.sha256(lines.encode()).hexdigest()


def test_sha256_of_one_file_is_that_of_the_file(opened, tmp_path: Path) -> None:
    weights = save({"w": np.zeros(300_000, np.float32)})
    checkpoint = opened(write_directory(tmp_path, weights))
    assert checkpoint.sha256() == hashlib.sha256(weights).hexdigest()


def test_hugging_face_cache_links_are_followed(opened, tmp_path: Path) -> None:
    entry_directory = tmp_path / "models--org--tiny-model"
    snapshot = entry_directory / "snapshots" / "0123abcd"
    (entry_directory / "blobs").mkdir(parents=True)
    real = write_directory(tmp_path / "real", save({"w": np.ones(2, np.float32)}))
    snapshot.mkdir(parents=True)
    for file in real.iterdir():
        blob = entry_directory / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        file.rename(blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    checkpoint = opened(snapshot)
    assert checkpoint.name == "org/tiny-model"
    np.testing.assert_array_equal(checkpoint.read("w"), np.ones(2))


def test_a_link_within_the_directory_and_a_linked_directory_are_followed(opened, tmp_path: Path) -> None:
    real = write_directory(tmp_path / "real", save({"w": np.ones(2, np.float32)}))
    (real / "model.safetensors").rename(real / "weights.bin0")
    (real / "model.safetensors").symlink_to("weights.bin0")
    link = tmp_path / "link"
    link.symlink_to(real)
    assert opened(link).name == "real"


def test_config_and_generation_config(opened, tmp_path: Path) -> None:
    path = write_directory(tmp_path, save({"w": np.ones(2, np.float32)}), {"model_type": "llama", "x": [1, 2.5, None]})
    checkpoint = opened(path)
    assert checkpoint.format == "safetensors"
    assert checkpoint.name == tmp_path.name
    assert checkpoint.config == {"model_type": "llama", "x": [1, 2.5, None]}
    assert checkpoint.generation_config == {}
    (path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    assert opened(path).generation_config == {"eos_token_id": [1, 2]}


def test_auto_map_is_data(opened, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = CONFIG | {"auto_map": {"AutoModel": "modeling.Evil"}}
    path = write_directory(tmp_path, save({"w": np.ones(2, np.float32)}), config)
    (path / "modeling.py").write_text("raise SystemExit('executed')")
    with caplog.at_level(logging.INFO):
        assert opened(path).config["auto_map"] == {"AutoModel": "modeling.Evil"}
    assert "never run" in caplog.text


def test_tokenizer_files_are_carried_as_they_are(opened, tmp_path: Path) -> None:
    path = write_directory(tmp_path, save({"w": np.ones(2, np.float32)}))
    (path / "tokenizer.json").write_bytes(word_tokenizer())
    files = opened(path).tokenizer().files
    assert files == {"tokenizer.json": word_tokenizer()}
    extra = {
        "tokenizer_config.json": b'{"bos_token": "t1"}',
        "special_tokens_map.json": b"{}",
        "chat_template.jinja": "{{ 'Grüße' }}".encode(),
    }
    for name, data in extra.items():
        (path / name).write_bytes(data)
    (path / "README.md").write_text("not a tokenizer file")
    assert opened(path).tokenizer().files == extra | {"tokenizer.json": word_tokenizer()}


def test_closed_twice(opened, tmp_path: Path) -> None:
    checkpoint = opened(write_directory(tmp_path, save({"w": np.ones(2, np.float32)})))
    checkpoint.close()
    checkpoint.close()


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        open_checkpoint(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="there is neither"):
        open_checkpoint(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UnsupportedError, match="not a checkpoint"):
        open_checkpoint(tmp_path / "notes.txt")
    (tmp_path / "model.safetensors").write_bytes(save({"w": np.ones(2, np.float32)}))
    with pytest.raises(InputError, match="give the directory"):
        open_checkpoint(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_checkpoint(tmp_path)


def test_checkpoint_is_abstract() -> None:
    with pytest.raises(TypeError):
        Checkpoint()  # type: ignore[abstract, call-arg]
