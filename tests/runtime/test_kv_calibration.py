"""Scales of int8 keys and values as they are measured."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tiny_package import TinyShape, write_package

from bitnet_onnx.errors import BitnetOnnxError, InputError, PackageError, UnsupportedError
from bitnet_onnx.package_format import KV_SCALES
from bitnet_onnx.runtime import Device, PackageInfo, load
from bitnet_onnx.runtime.engine.engine import Engine
from bitnet_onnx.runtime.kv_calibration import HEADROOM, measure_kv_scales, write_kv_scales
from bitnet_onnx.runtime.kv_scales import KvScales, scales_for
from bitnet_onnx.runtime.session import DecoderSession

DEVICE = Device()
TEXTS = ([5, 6, 7, 8], list(range(40, 90)))


def edit_tensor(directory: Path, name: str, factor: float) -> PackageInfo:
    """Multiplies one weight of a package."""
    model = onnx.load(directory / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), name))
    onnx.save_model(
        model, directory / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=64
    )
    return PackageInfo.open(directory)


def spoil(directory: Path, name: str, column: int, value: float) -> PackageInfo:
    """Sets one column of a weight."""
    model = onnx.load(directory / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.name == name:
            array = numpy_helper.to_array(tensor).copy()
            array[:, column] = value
            tensor.CopyFrom(numpy_helper.from_array(array, name))
    (directory / "model.onnx.data").unlink()
    onnx.save_model(
        model, directory / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=64
    )
    return PackageInfo.open(directory)


def cached(package: PackageInfo, texts: tuple[list[int], ...] = TEXTS) -> np.ndarray:
    """Largest magnitudes `[2 * layers, kv_heads, head_dim]` in the cache after each of some texts."""
    session = DecoderSession(package, DEVICE, threads=1)
    largest = []
    for text in texts:
        cache = session.new_cache()
        session.step(text, cache)
        largest.append([np.abs(buffer[:, :, : cache.length]).max(axis=(0, 2)) for buffer in cache.buffers])
    return np.max(largest, axis=0)


def test_a_step_is_the_largest_value_over_127(package: PackageInfo) -> None:
    scales = measure_kv_scales(package, DEVICE, texts=TEXTS, threads=1)
    largest = cached(package)
    np.testing.assert_allclose(scales.value, HEADROOM * largest[1::2] / 127, rtol=1e-4)
    keys = largest[0::2]
    pairs = np.maximum(keys[..., :8], keys[..., 8:])
    np.testing.assert_allclose(scales.key, HEADROOM * np.concatenate([pairs, pairs], -1) / 127, rtol=1e-4)
    with_twice = measure_kv_scales(package, DEVICE, texts=TEXTS, headroom=3, threads=1)
    np.testing.assert_allclose(with_twice.value, scales.value * (3 / HEADROOM), rtol=1e-6)


def test_neighbours_are_pairs_where_they_turn_together(fresh_package: Path) -> None:
    model = onnx.load(fresh_package / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "GroupQueryAttention":
            node.attribute.append(onnx.helper.make_attribute("rotary_interleaved", 1))
    (fresh_package / "model.onnx").write_bytes(model.SerializeToString())
    package = PackageInfo.open(fresh_package)
    scales = measure_kv_scales(package, DEVICE, texts=TEXTS, threads=1)
    pairs = cached(package)[0::2].reshape(2, 2, 8, 2).max(axis=-1)
    np.testing.assert_allclose(scales.key, HEADROOM * np.repeat(pairs, 2, axis=-1) / 127, rtol=1e-4)


def test_texts_are_read_up_to_so_many_tokens(package: PackageInfo) -> None:
    scales = measure_kv_scales(package, DEVICE, texts=TEXTS, tokens=24, threads=1)
    largest = cached(package, (TEXTS[0], TEXTS[1][:20]))
    np.testing.assert_allclose(scales.value, HEADROOM * largest[1::2] / 127, rtol=1e-4)
    assert not np.allclose(largest, cached(package))


def test_text_that_the_model_writes_is_the_same_each_time(package: PackageInfo) -> None:
    first = measure_kv_scales(package, DEVICE, threads=1)
    again = measure_kv_scales(package, DEVICE, threads=1)
    np.testing.assert_array_equal(first.key, again.key)
    np.testing.assert_array_equal(first.value, again.value)
    other = measure_kv_scales(package, DEVICE, threads=1, seed=1)
    assert not np.array_equal(first.value, other.value)
    # It is text of this model: another has not much larger values in it.
    largest = cached(package)
    assert (largest <= 127 * np.stack([first.key, first.value], 1).reshape(4, 2, 16)).mean() > 0.95


@pytest.mark.parametrize("tokens", [1, 7, 8, 100_000])
def test_any_number_of_tokens_can_be_written(tmp_path: Path, tokens: int) -> None:
    package = PackageInfo.open(write_package(tmp_path, TinyShape(context_length=12)))
    scales = measure_kv_scales(package, DEVICE, tokens=tokens, threads=1)
    scales.check(package.architecture)


def test_features_that_are_zero_get_the_scale_of_their_head(fresh_package: Path) -> None:
    package = spoil(fresh_package, "v.0", 3, 0.0)
    scales = measure_kv_scales(package, DEVICE, texts=TEXTS, threads=1)
    assert scales.value[0, 0, 3] == scales.value[0, 0].max()
    package = edit_tensor(fresh_package, "v.0", 0.0)
    np.testing.assert_array_equal(
        measure_kv_scales(package, DEVICE, texts=TEXTS, threads=1).value[0], np.float32(HEADROOM / 127)
    )


def test_tiny_and_huge_values_have_scales(fresh_package: Path) -> None:
    package = edit_tensor(fresh_package, "v.0", 1e-38)
    assert measure_kv_scales(package, DEVICE, texts=TEXTS, threads=1).value[0].min() >= np.finfo(np.float32).tiny


@pytest.mark.parametrize("texts", [TEXTS, None])
def test_a_model_that_computes_nonsense_is_one_line(fresh_package: Path, texts: tuple[list[int], ...] | None) -> None:
    package = spoil(fresh_package, "k.1", 20, np.nan)
    with pytest.raises(BitnetOnnxError, match=r"feature 4 of key head 1, layer 1 is not finite|no usable logits"):
        measure_kv_scales(package, DEVICE, texts=texts, threads=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tokens": 0}, "tokens is 0"),
        ({"headroom": 0.5}, "headroom is 0.5"),
        ({"headroom": float("nan")}, "headroom is nan"),
        ({"headroom": float("inf")}, "headroom is inf"),
        ({"texts": [[]]}, "no token ids"),
        ({"texts": [[259]]}, "token id 259"),
        ({"texts": []}, "no text"),
    ],
)
def test_arguments_out_of_range_are_refused(package: PackageInfo, options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        measure_kv_scales(package, DEVICE, threads=1, **options)  # type: ignore[arg-type]  # that is the test


def test_what_is_written_is_what_is_used(fresh_package: Path, caplog: pytest.LogCaptureFixture) -> None:
    package = PackageInfo.open(fresh_package)
    with caplog.at_level(logging.INFO):
        measured = scales_for(package, DEVICE, "int8", threads=1)
        assert measured is not None
        assert len(caplog.records) == 1
        assert "measured in" in caplog.text
        assert KV_SCALES in caplog.text
        written = write_kv_scales(fresh_package, device=DEVICE, texts=TEXTS, threads=1)
        caplog.clear()
        found = scales_for(package, DEVICE, "int8", threads=1)
        assert not caplog.records
    assert found is not None
    np.testing.assert_array_equal(found.key, written.key)
    assert not np.array_equal(found.value, measured.value)
    assert scales_for(package, DEVICE, "float32") is None
    with pytest.raises(InputError, match="kv is 'int4', expected one of float32, int8"):
        scales_for(package, DEVICE, "int4")  # type: ignore[arg-type]  # that is the test


def test_a_package_with_a_broken_file_is_refused_by_all(fresh_package: Path) -> None:
    (fresh_package / KV_SCALES).write_bytes(b"broken")
    for call in (
        lambda: load(fresh_package, device=DEVICE, kv="int8"),
        lambda: Engine.open(fresh_package, device=DEVICE, kv="int8"),
    ):
        with pytest.raises(PackageError, match=f"{KV_SCALES}: not a safetensors file"):
            call()
    load(fresh_package, device=DEVICE)


def test_a_graph_without_such_attention_is_refused(fresh_package: Path) -> None:
    model = onnx.load(fresh_package / "model.onnx", load_external_data=False)
    node = next(node for node in model.graph.node if node.op_type == "GroupQueryAttention")
    node.name = "the_node"
    past, node.input[3] = node.input[3], "copy"
    model.graph.node.insert(0, onnx.helper.make_node("Identity", [past], ["copy"], name="a_copy"))
    (fresh_package / "model.onnx").write_bytes(model.SerializeToString())
    package = PackageInfo.open(fresh_package)
    scales = KvScales(*(np.ones((2, 2, 16), np.float32) for _ in range(2)))
    for call in (
        lambda: measure_kv_scales(package, DEVICE),
        lambda: DecoderSession(package, DEVICE, kv_scales=scales),
    ):
        with pytest.raises(UnsupportedError, match="node a_copy reads"):
            call()
