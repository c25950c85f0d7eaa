from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from bitnet_onnx.errors import BitnetOnnxError, InputError, PackageError
from bitnet_onnx.package_format import KV_SCALES
from bitnet_onnx.runtime.kv_scales import KvScales, packaged_scales
from bitnet_onnx.runtime.package import Architecture

SIZES = Architecture(num_hidden_layers=2, num_key_value_heads=3, head_dim=8, vocab_size=10, context_length=10)
SHAPE = (2, 3, 8)


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape or SHAPE, np.float32)


def with_value(value: float) -> np.ndarray:
    scales = ones()
    scales[1, 2, 7] = value
    return scales


def headed(header: object, data: bytes = b"\0" * 384) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def described(dtype: str = "F32", end: int = 192) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(SHAPE), "data_offsets": [0, end]}


def test_what_was_saved_is_read_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scales = KvScales(*(rng.random(SHAPE).astype(np.float32) + np.float32(1e-3) for _ in range(2)))
    path = tmp_path / KV_SCALES
    scales.save(path)
    found = KvScales.open(path, SIZES)
    np.testing.assert_array_equal(found.key, scales.key)
    np.testing.assert_array_equal(found.value, scales.value)
    first = path.read_bytes()
    scales.save(path)
    assert path.read_bytes() == first
    assert [found.name for found in tmp_path.iterdir()] == [KV_SCALES]


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf, 1e-39])
@pytest.mark.parametrize("part", ["key", "value"])
def test_scales_that_are_none_are_refused(tmp_path: Path, value: float, part: str) -> None:
    arrays = {"key": ones(), "value": ones()} | {part: with_value(value)}
    with pytest.raises(InputError, match=f"the {part} scale of layer 1, head 2, feature 7 is"):
        KvScales(**arrays)
    path = tmp_path / KV_SCALES
    path.write_bytes(save(arrays))
    with pytest.raises(PackageError, match="layer 1, head 2, feature 7") as caught:
        KvScales.open(path, SIZES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arrays", [(ones(), ones(2, 3, 9)), (ones(3, 8), ones(3, 8)), (ones().astype("f8"), ones())])
def test_arrays_of_another_form_are_refused(arrays: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(InputError, match="expected float32 of one shape"):
        KvScales(*arrays)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param(b"", "not a safetensors file", id="empty"),
        pytest.param(b"\xff" * 400, "not a safetensors file", id="noise"),
        pytest.param((2**63).to_bytes(8, "little") + b"{}", "not a safetensors file", id="header beyond the file"),
        pytest.param(save({"key": ones(), "value": ones()})[:-1], "not a safetensors file", id="truncated"),
        pytest.param(save({"key": ones(), "value": ones()}) + b"\0", "not a safetensors file", id="more behind"),
        pytest.param(b"\0" * (2 * 192 + 2**16 + 1), "above the limit of", id="large"),
        pytest.param(headed([]), "not a safetensors file", id="a list"),
        pytest.param(headed({"key": described(end=2**63)}), "not a safetensors file", id="offset beyond the file"),
        pytest.param(
            headed({"key": described(), "value": described()}, b"\0" * 192), "not a safetensors file", id="overlap"
        ),
        pytest.param(save({"key": ones()}), "holds 1 tensors", id="no values"),
        pytest.param(save({}), "holds 0 tensors", id="nothing"),
        pytest.param(save({"key": ones(), "value": ones(), "more": ones()}), "holds 3 tensors", id="three"),
        pytest.param(save({"key": ones(2, 24), "value": ones()}), r"key is F32 \[2, 24\]", id="two dimensions"),
        pytest.param(save({"key": ones(), "value": ones(2, 3, 7)}), r"value is F32 \[2, 3, 7\]", id="fewer features"),
        pytest.param(save({"key": ones(), "value": ones().astype("f2")}), "value is F16", id="float16"),
    ],
)
def test_files_that_lie_are_refused_on_one_line(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / KV_SCALES
    path.write_bytes(data)
    with pytest.raises(PackageError, match=words) as caught:
        KvScales.open(path, SIZES)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    data = save({"key": ones(), "value": ones()})
    path = tmp_path / KV_SCALES
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(PackageError):
            KvScales.open(path, SIZES)


def test_a_package_may_have_none(tmp_path: Path) -> None:
    assert packaged_scales(tmp_path, SIZES) is None


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (lambda path: path.mkdir(), "not a regular file"),
        (lambda path: path.symlink_to("/etc/hostname"), "a link that leaves the package"),
        (lambda path: path.symlink_to("absent"), "missing, or not a regular file"),
    ],
)
def test_what_is_no_file_of_the_package_is_refused(tmp_path: Path, place: Callable[[Path], object], words: str) -> None:
    place(tmp_path / KV_SCALES)
    with pytest.raises(PackageError, match=words):
        packaged_scales(tmp_path, SIZES)


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / KV_SCALES).mkdir()
    with pytest.raises(BitnetOnnxError, match="cannot be written"):
        KvScales(ones(), ones()).save(tmp_path / KV_SCALES)
    assert [found.name for found in tmp_path.iterdir()] == [KV_SCALES]
    with pytest.raises(BitnetOnnxError, match="cannot be written"):
        KvScales(ones(), ones()).save(tmp_path / "absent" / KV_SCALES)


def test_scales_of_another_model_are_refused() -> None:
    with pytest.raises(InputError, match=r"\[2, 3, 9\], the model needs \[2, 3, 8\]"):
        KvScales(ones(2, 3, 9), ones(2, 3, 9)).check(SIZES)
