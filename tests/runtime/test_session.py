from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from tiny_package import TinyShape, edit_json, manifest, write_package

from bitnet_onnx.custom_ops import library_path
from bitnet_onnx.errors import BitnetOnnxError, InputError, OperatorError, PackageError
from bitnet_onnx.runtime import Device, PackageInfo
from bitnet_onnx.runtime.kv_cache import KVCache
from bitnet_onnx.runtime.session import DecoderSession

IDS = [int(token) for token in np.random.default_rng(5).integers(0, 256, 90)]


@pytest.fixture(scope="module")
def session(package: PackageInfo) -> DecoderSession:
    return DecoderSession(package, Device(), threads=1)


@pytest.fixture(scope="module")
def whole(session: DecoderSession) -> npt.NDArray[np.float32]:
    """Logits of every position, read in one call."""
    return session.forward(IDS, session.new_cache())


def test_token_by_token_equals_the_whole(session: DecoderSession, whole: npt.NDArray[np.float32]) -> None:
    cache = session.new_cache()
    steps = np.array([session.step([token], cache) for token in IDS])
    np.testing.assert_allclose(steps, whole, atol=1e-4)
    np.testing.assert_array_equal(steps.argmax(-1), whole.argmax(-1))
    assert cache.length == len(IDS)


@pytest.mark.parametrize("chunk", [1, 2, 7, 32, 89, 90, 1000])
def test_chunks_equal_the_whole(package: PackageInfo, whole: npt.NDArray[np.float32], chunk: int) -> None:
    session = DecoderSession(package, Device(), threads=1, prefill_chunk=chunk)
    np.testing.assert_allclose(session.step(IDS, session.new_cache()), whole[-1], atol=1e-4)


def test_a_large_vocabulary_makes_chunks_small(package: PackageInfo) -> None:
    small = DecoderSession(package, Device(), threads=1)._graph.chunk
    large = replace(package, architecture=replace(package.architecture, vocab_size=2**24))
    with pytest.raises(PackageError, match="logits"):
        DecoderSession(large, Device(), threads=1)
    assert small == 256


def test_the_graph_writes_in_place_and_reads_nothing_behind_the_length(
    session: DecoderSession, whole: npt.NDArray[np.float32]
) -> None:
    cache = session.new_cache()
    cache.reserve(len(IDS))
    buffers = list(cache._buffers)
    for buffer in buffers:
        buffer.fill(np.nan)
    session.step(IDS[:40], cache)
    last = session.step(IDS[40:60], cache)
    np.testing.assert_allclose(last, whole[59], atol=1e-4)
    assert all(old is new for old, new in zip(buffers, cache._buffers, strict=True))
    for buffer in buffers:
        assert np.isfinite(buffer[:, :, :60]).all()
        assert np.isnan(buffer[:, :, 60:]).all()


def test_the_cache_grows_by_half_and_keeps_what_it_holds(
    package: PackageInfo, session: DecoderSession, whole: npt.NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitnet_onnx.runtime.kv_cache._INITIAL_CAPACITY", 4)
    cache = session.new_cache()
    assert (cache.capacity, cache.bytes_used) == (0, 0)
    capacities = []
    for position, token in enumerate(IDS):
        np.testing.assert_allclose(session.step([token], cache), whole[position], atol=1e-4)
        capacities.append(cache.capacity)
    assert sorted(set(capacities)) == [4, 6, 9, 13, 19, 28, 42, 63, 94]
    sizes = package.architecture
    assert cache.bytes_used == 94 * sizes.num_hidden_layers * 2 * sizes.num_key_value_heads * sizes.head_dim * 4


def test_truncating_goes_back_to_an_earlier_text(session: DecoderSession, whole: npt.NDArray[np.float32]) -> None:
    cache = session.new_cache()
    session.step(IDS[:50], cache)
    session.step([1, 2, 3, 4], cache)
    cache.truncate(50)
    np.testing.assert_allclose(session.step(IDS[50:60], cache), whole[59], atol=1e-4)
    cache.reset()
    assert cache.length == 0
    np.testing.assert_allclose(session.step(IDS[:30], cache), whole[29], atol=1e-4)
    for length in (-1, 31):
        with pytest.raises(InputError, match="cannot truncate"):
            cache.truncate(length)


def test_two_caches_do_not_know_each_other(session: DecoderSession, whole: npt.NDArray[np.float32]) -> None:
    first, second = session.new_cache(), session.new_cache()
    session.step(IDS[:20], first)
    session.step(IDS[:7], second)
    np.testing.assert_allclose(session.step(IDS[20:30], first), whole[29], atol=1e-4)
    np.testing.assert_allclose(session.step(IDS[7:9], second), whole[8], atol=1e-4)


def test_more_than_the_context_is_refused_before_anything_is_read(session: DecoderSession) -> None:
    cache = session.new_cache()
    with pytest.raises(InputError, match="97 tokens do not fit the model's context of 96"):
        session.step([1] * 97, cache)
    assert cache.length == 0
    session.step([1] * 96, cache)
    with pytest.raises(InputError, match="97 tokens"):
        session.step([1], cache)


@pytest.mark.parametrize("ids", [[-1], [259], [1, 2**40], [2**70], [[1]], ["a"], [1.5], [True], []])
def test_ids_that_the_model_does_not_have_are_refused(session: DecoderSession, ids: list[int]) -> None:
    with pytest.raises(InputError, match=r"token id|no token ids"):
        session.step(ids, session.new_cache())


def test_the_operator_library_changes_nothing_in_a_graph_without_its_operators(
    package: PackageInfo, whole: npt.NDArray[np.float32]
) -> None:
    path = library_path()
    if path is None:
        pytest.skip("the operator library is not built")
    session = DecoderSession(package, Device(operator_library=path), threads=1)
    np.testing.assert_array_equal(session.forward(IDS, session.new_cache()), whole)


def test_a_library_that_does_not_load_is_not_blamed_on_the_package(package: PackageInfo, tmp_path: Path) -> None:
    broken = tmp_path / "libbroken.so"
    broken.write_bytes(b"not a library")
    with pytest.raises(OperatorError, match="libbroken"):
        DecoderSession(package, Device(operator_library=broken), threads=1)


@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_threads_out_of_range_are_refused(package: PackageInfo, threads: int) -> None:
    with pytest.raises(InputError, match="threads is"):
        DecoderSession(package, Device(), threads=threads)


def test_a_chunk_of_nothing_is_refused(package: PackageInfo) -> None:
    with pytest.raises(InputError, match="prefill_chunk is 0"):
        DecoderSession(package, Device(), prefill_chunk=0)


def test_no_memory_for_the_cache_is_one_line(session: DecoderSession, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise MemoryError

    cache = session.new_cache()
    monkeypatch.setattr(np, "zeros", fail)
    with pytest.raises(BitnetOnnxError, match="no memory for a KV cache of 64 tokens"):
        cache.reserve(1)


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_growth_that_ends_half_way_leaves_the_cache_sound(
    session: DecoderSession,
    whole: npt.NDArray[np.float32],
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
) -> None:
    cache = session.new_cache()
    session.step(IDS[:64], cache)
    assert cache.capacity == 64
    zeros, made = np.zeros, []

    def fail_later(*args: Any) -> object:
        if len(made) == 3:
            raise error
        made.append(args)
        return zeros(*args)

    with monkeypatch.context() as patch:
        patch.setattr(np, "zeros", fail_later)
        with pytest.raises((BitnetOnnxError, KeyboardInterrupt)):
            cache.reserve(65)
    assert (cache.capacity, cache.length) == (64, 64)
    cache.truncate(63)
    np.testing.assert_allclose(session.step(IDS[63:64], cache), whole[63], atol=1e-4)
    np.testing.assert_allclose(session.step(IDS[64:80], cache), whole[79], atol=1e-4)


def test_a_failing_run_is_one_line_and_leaves_the_cache_alone(tmp_path: Path) -> None:
    # The rotary table is shorter than the context that the manifest promises.
    directory = write_package(tmp_path, TinyShape(context_length=16))
    shape = TinyShape(context_length=64)
    edit_json(directory / "bitnet_onnx.json", **manifest(shape, 259))
    session = DecoderSession(PackageInfo.open(directory), Device(), threads=1)
    cache = session.new_cache()
    session.step([1] * 10, cache)
    with pytest.raises(BitnetOnnxError, match="running failed") as caught:
        session.step([1] * 10, cache)
    assert "\n" not in str(caught.value)
    assert cache.length == 10


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("num_hidden_layers", 3, r"past_key_values.2.key is missing"),
        ("num_hidden_layers", 1, r"past_key_values.1.key is not in the manifest"),
        ("num_key_value_heads", 4, "past_key_values.0.key is"),
        ("head_dim", 32, "past_key_values.0.key is"),
        ("vocab_size", 260, "logits is"),
    ],
)
def test_a_manifest_that_lies_about_the_graph_is_refused(
    fresh_package: Path, field: str, value: int, words: str
) -> None:
    sizes = manifest(TinyShape(), 259)["architecture"]
    edit_json(fresh_package / "bitnet_onnx.json", architecture={**sizes, field: value})
    package = PackageInfo.open(fresh_package)
    with pytest.raises(PackageError, match=words):
        DecoderSession(package, Device(), threads=1)


def test_a_graph_that_is_no_graph_is_one_line(fresh_package: Path) -> None:
    (fresh_package / "model.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(PackageError, match="ONNX Runtime cannot open it") as caught:
        DecoderSession(PackageInfo.open(fresh_package), Device(), threads=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("location", ["../outside.data", "/etc/hostname", "absent.data"])
def test_a_graph_whose_weights_lie_elsewhere_is_refused(fresh_package: Path, location: str) -> None:
    data = (fresh_package / "model.onnx.data").read_bytes()
    (fresh_package.parent / "outside.data").write_bytes(data)
    graph = onnx.load(fresh_package / "model.onnx", load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (fresh_package / "model.onnx").write_bytes(graph.SerializeToString())
    with pytest.raises(PackageError, match="ONNX Runtime cannot open it"):
        DecoderSession(PackageInfo.open(fresh_package), Device(), threads=1)


def test_truncated_weights_are_refused(fresh_package: Path) -> None:
    data = (fresh_package / "model.onnx.data").read_bytes()
    (fresh_package / "model.onnx.data").write_bytes(data[: len(data) // 2])
    message = r"ONNX Runtime cannot open it: .*; if model\.onnx\.data was cut short, copy the package's whole directory"
    with pytest.raises(PackageError, match=message):
        DecoderSession(PackageInfo.open(fresh_package), Device(), threads=1)


def test_an_empty_cache_binds_nothing_twice(session: DecoderSession) -> None:
    cache: KVCache = session.new_cache()
    cache.reserve(1)
    assert cache.binding() is cache.binding()
