"""Sessions that hold keys and values as int8."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from batch_play import Model, token

from bitnet_onnx.errors import InputError, PackageError
from bitnet_onnx.runtime import Device, PackageInfo, SamplingParameters, load
from bitnet_onnx.runtime.kv_calibration import measure_kv_scales, write_kv_scales
from bitnet_onnx.runtime.kv_scales import KvScales
from bitnet_onnx.runtime.memory import HybridMemoryPool
from bitnet_onnx.runtime.package import Architecture
from bitnet_onnx.runtime.session import DecoderSession

FAMILIES = ("mistral_window", "mistral_mha", "gpt2", "gemma3_text", "llama_dynamic")
IDS = [token(position, 1, 300) for position in range(120)]


def one_step(sizes: Architecture, step: float = 1.0) -> KvScales:
    shape = sizes.num_hidden_layers, sizes.num_key_value_heads, sizes.head_dim
    return KvScales(*(np.full(shape, step, np.float32) for _ in range(2)))


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Of logits, in units of how far they lie apart."""
    return float(np.sqrt(np.mean((found - expected) ** 2)) / expected.std())


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_close_to_those_of_float32(family: Callable[..., Model], name: str) -> None:
    model = family(name, "int8")
    session = DecoderSession(model.package, model.device, threads=1, kv_scales=model.scales)
    whole = DecoderSession(model.package, model.device, threads=1)
    found = session.forward(IDS, session.new_cache())
    expected = whole.forward(IDS, whole.new_cache())
    # Measured: 0.015 to 0.032.
    assert 0 < difference(found, expected) < 0.05


@pytest.mark.parametrize("name", FAMILIES)
def test_the_library_and_onnx_runtime_agree(family: Callable[..., Model], name: str) -> None:
    model = family(name, "int8")
    ours = DecoderSession(model.package, model.device, threads=1, kv_scales=model.scales)
    stock = DecoderSession(model.package, Device(), threads=1, kv_scales=model.scales)
    found = stock.forward(IDS, stock.new_cache())
    # Measured: 0.017 to 0.034, most of it from the bodies of other operators, which round activations otherwise.
    assert difference(found, ours.forward(IDS, ours.new_cache())) < 0.05


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_gives_the_same_bits_however_it_is_read(family: Callable[..., Model], name: str) -> None:
    model = family(name, "int8")
    session = DecoderSession(model.package, model.device, threads=2, kv_scales=model.scales)
    whole = session.new_cache()
    expected = session.forward(IDS, whole)
    for size in (1, 7, 64):
        cache = session.new_cache()
        found = [session.forward(IDS[start : start + size], cache) for start in range(0, len(IDS), size)]
        np.testing.assert_array_equal(np.concatenate(found), expected)
        for one, other in zip(whole.buffers, cache.buffers, strict=True):
            np.testing.assert_array_equal(one[:, :, : len(IDS)], other[:, :, : len(IDS)])
    cache.truncate(50)
    np.testing.assert_array_equal(session.step(IDS[50:80], cache), expected[79])


def test_onnx_runtime_alone_reads_in_chunks_too(package: PackageInfo) -> None:
    scales = measure_kv_scales(package, Device(), threads=1)
    session = DecoderSession(package, Device(), threads=1, kv_scales=scales)
    ids = [n % 259 for n in IDS[:90]]
    expected = session.forward(ids, session.new_cache())
    cache = session.new_cache()
    found = np.concatenate([session.forward(ids[start : start + 13], cache) for start in range(0, 90, 13)])
    # A value half way between two codes may be rounded to the other one.
    assert difference(found, expected) < 0.02
    whole = DecoderSession(package, Device(), threads=1)
    # Measured: 0.056; this decoder has large scores.
    assert 0 < difference(found, whole.forward(ids, whole.new_cache())) < 0.08


def test_onnx_runtime_alone_decodes_in_batches(package: PackageInfo, storage: str) -> None:
    model = Model(package, Device(), "int8")
    session = model.open(max_batch=3, prefill_chunk=32)
    texts = [[n % 259 for n in IDS[shift : shift + length]] for shift, length in ((0, 3), (10, 70), (20, 31))]
    sequences = [session.open(90) for _ in texts]
    for sequence, text in zip(sequences, texts, strict=True):
        assert sequence is not None
        for start in range(0, len(text), 32):
            session.prefill(sequence, text[start : start + 32], logits=False)
    for new in (5, 6, 7):
        for text in texts:
            text.append(new)
        found = session.decode([sequence for sequence in sequences if sequence is not None], [new] * 3)
        assert difference(found, np.stack([model.logits(text) for text in texts])) < 0.02


def test_a_token_takes_a_quarter_of_the_memory(package: PackageInfo, storage: str) -> None:
    sizes = package.architecture
    caches, held, blocks = [], [], []
    for scales in (None, one_step(sizes)):
        session = DecoderSession(package, Device(), threads=1, kv_scales=scales)
        cache = session.new_cache()
        cache.reserve(64)
        caches.append(cache.bytes_used)
        memory = HybridMemoryPool(1 << 30)
        model = Model(package, Device())
        model.scales = scales
        batch = model.open(memory, max_batch=2)
        sequence = batch.open(0)
        assert sequence is not None
        batch.prefill(sequence, [1] * 96, logits=False)
        held.append(memory.report().by_owner["kv"])
        blocks.append(batch.copy_out(sequence, 0, 64).nbytes)
        filled = (1 - memory.report().fragmentation) * held[-1]
        assert filled == pytest.approx(96 * sizes.cache_bytes_per_token / (1 if scales is None else 4))
    assert caches[0] == 4 * caches[1]
    assert blocks[0] == 4 * blocks[1]
    # 96 tokens of 16 features: two pages in float32, one in int8.
    assert held[0] == (2 if storage == "paged" else 4) * held[1]


def test_scales_of_another_model_are_refused(package: PackageInfo) -> None:
    scales = KvScales(*(np.ones((2, 2, 8), np.float32) for _ in range(2)))
    with pytest.raises(InputError, match=r"the model needs \[2, 2, 16\]"):
        DecoderSession(package, Device(), kv_scales=scales)


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
    package = PackageInfo.open(fresh_package)
    with pytest.raises(PackageError, match=r"is stored in .*, expected model\.onnx\.data") as caught:
        DecoderSession(package, Device(), threads=1, kv_scales=one_step(package.architecture))
    assert "\n" not in str(caught.value)


def test_truncated_weights_are_refused(fresh_package: Path) -> None:
    data = (fresh_package / "model.onnx.data").read_bytes()
    (fresh_package / "model.onnx.data").write_bytes(data[: len(data) // 2])
    package = PackageInfo.open(fresh_package)
    with pytest.raises(PackageError, match="ONNX Runtime cannot open it"):
        DecoderSession(package, Device(), threads=1, kv_scales=one_step(package.architecture))


def test_a_package_is_found_wherever_the_process_stands(fresh_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_kv_scales(fresh_package, device=Device(), tokens=64, threads=1)
    asked = SamplingParameters(max_new_tokens=5)
    monkeypatch.chdir(fresh_package)
    here = load(".", device=Device(), kv="int8").generate("abc", asked)
    monkeypatch.chdir("/")
    assert load(fresh_package, device=Device(), kv="int8").generate("abc", asked).ids == here.ids
