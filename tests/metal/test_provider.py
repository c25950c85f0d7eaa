"""The provider on the emulated device against the operator library on the CPU: placement, results, memory."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import random_decoders
from batch_play import Model, token
from metal_provider import (
    WIDE,
    ProviderLogits,
    counters,
    decoder_package,
    metal_device,
    on_the_cpu,
    placement,
    provider_library,
    provider_options,
)
from package_logits import PackageLogits

from bitnet_onnx.custom_ops import library_path
from bitnet_onnx.policy import Policy, Precision, Weights
from bitnet_onnx.runtime import Device, PackageInfo
from bitnet_onnx.runtime.kv_calibration import measure_kv_scales
from bitnet_onnx.runtime.session import DecoderSession

TERNARY = Policy(Precision(Weights.TERNARY), Precision(Weights.INT8))
#: What a conversion makes where nobody says otherwise: groups of int4, a head with activations of 16 bits.
GROUPS = Policy(Precision(Weights.INT4, 32), Precision(Weights.INT8, 0, 16))
#: Lengths, masks and positions of a call are the CPU's.
LENGTHS = {"ReduceSum", "Sub", "Cast", "Shape", "Squeeze", "Max", "Min", "Range", "Constant"}
IDS = np.arange(1, 40) * 7 % 211

pytestmark = pytest.mark.skipif(library_path() is None, reason="the operator library is not built: no C++17 compiler")


@pytest.fixture(scope="module", autouse=True)
def _provider() -> None:
    provider_library()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return decoder_package(tmp_path_factory.mktemp("base"), random_decoders.BASE, TERNARY)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder whose context has more than one chunk of keys."""
    return decoder_package(
        tmp_path_factory.mktemp("long"), random_decoders.SPECS["windows and rotations that alternate"], GROUPS
    )


#: What a session on the CPU computes with the same kernels bit for bit; norms and activations as nodes of their own
#: are ONNX Runtime's there, which sums in another order.
EXACT = (
    "base",
    "biases",
    "gated gelu_tanh",
    "plain relu2",
    "learned positions with offset",
    "rotary: partial, interleaved",
    "rotary in one layer of two",
    "20 of 80 features rotated",
    "sub-norms",
)
CLOSE = (
    "like gpt-neox",
    "norms: both, rms",
    "query and key norms: head, rms",
    "norms in linear layers with biases",
    "gated quick_gelu",
)


@pytest.mark.parametrize("name", EXACT + CLOSE)
def test_a_whole_decoder_is_one_part(tmp_path: Path, name: str) -> None:
    package = decoder_package(tmp_path, random_decoders.SPECS[name], TERNARY)
    expected, found = PackageLogits(package, library_path()), ProviderLogits(package)
    (part,) = placement(found.session)
    assert part["GroupQueryAttention"] == 2
    outside = {op for op in on_the_cpu(found.session) if op not in LENGTHS}
    assert outside <= ({"Gather", "Add"} if name.startswith("learned") else set())
    whole = expected(IDS)
    tolerance = 0.0 if name in EXACT else 4e-6 * np.abs(whole).max()
    for left, right in [
        (found(IDS), whole),
        (found(IDS[:12], chunk=1), whole[:12]),
        *zip(found.ragged([IDS[:3], IDS[:9], IDS[:1]]), expected.ragged([IDS[:3], IDS[:9], IDS[:1]]), strict=True),
    ]:
        np.testing.assert_allclose(left, right, rtol=0, atol=tolerance)


def test_function_nodes_are_claimed_without_the_operator_library(base: Path) -> None:
    found = ProviderLogits(base, operators=False)
    (part,) = placement(found.session)
    assert part["BitLinear"] == 9
    np.testing.assert_array_equal(found(IDS), PackageLogits(base, library_path())(IDS))


@pytest.mark.parametrize("operators", [True, False])
@pytest.mark.parametrize("bits", [0, 16])
def test_single_nodes_fall_back(base: Path, tmp_path: Path, bits: int, operators: bool) -> None:
    """One linear layer in the middle has activations that the shaders lack."""
    package = tmp_path / "package"
    shutil.copytree(base, package)
    model = onnx.load(package / "model.onnx", load_external_data=False)
    (node,) = (node for node in model.graph.node if node.name == "/model/layers.1/attn/o_proj/BitLinear")
    (attribute,) = (attribute for attribute in node.attribute if attribute.name == "activation_bits")
    attribute.i = bits
    onnx.save(model, package / "model.onnx")
    found = ProviderLogits(package, operators=operators)
    before, behind = placement(found.session)
    assert before["GroupQueryAttention"] == 2
    assert before["BitLinear"] + behind["BitLinear"] == 8
    if operators:
        assert on_the_cpu(found.session)["BitLinear"] == 1
        np.testing.assert_array_equal(found(IDS), PackageLogits(package, library_path())(IDS))
    else:
        # The function body of that node has 8 bits, as it was declared.
        np.testing.assert_array_equal(found(IDS), PackageLogits(base, library_path())(IDS))


def test_operands_that_are_repeated_along_any_axis(base: Path, tmp_path: Path) -> None:
    """As graphs of others may have them: a factor for each token, and a vector before the minus."""
    package = tmp_path / "package"
    shutil.copytree(base, package)
    model = onnx.load(package / "model.onnx", load_external_data=False)
    (node,) = (node for node in model.graph.node if node.name == "/model/layers.0/mlp/Add")
    result, node.output[0] = node.output[0], "plain"
    place = list(model.graph.node).index(node) + 1
    shape = ["batch_size", "sequence_length", 1]
    model.graph.input.append(onnx.helper.make_tensor_value_info("gain", onnx.TensorProto.FLOAT, shape))
    offset = np.linspace(-1, 1, random_decoders.BASE.hidden_size, dtype=np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(offset, "offset"))
    model.graph.node.insert(place, onnx.helper.make_node("Sub", ["offset", "scaled"], [result], "minus"))
    model.graph.node.insert(place, onnx.helper.make_node("Mul", ["gain", "plain"], ["scaled"], "times"))
    onnx.save(model, package / "model.onnx")
    feeds = {"gain": np.array([[[0.5], [2.0], [-1.5]]], np.float32), "input_ids": np.array([[5, 6, 7]])}
    feeds["attention_mask"] = np.ones((1, 3), np.int64)
    for layer in range(2):
        for part in ("key", "value"):
            feeds[f"past_key_values.{layer}.{part}"] = np.zeros((1, 2, 0, 16), np.float32)
    found, expected = ProviderLogits(package).session, PackageLogits(package, library_path()).session
    (part,) = placement(found)
    assert (part["Mul"], part["Sub"]) == (1, 1)
    np.testing.assert_array_equal(found.run(["logits"], feeds)[0], expected.run(["logits"], feeds)[0])


def test_the_engine_graph_and_a_head_on_the_cpu(long: Path) -> None:
    """Chunks of a prompt behind each other, more than one chunk of keys, and logits of the last position alone."""
    package = PackageInfo.open(long)
    ids = [token(position, 1, 211) for position in range(150)]
    steps: list[Sequence[int]] = [ids[:140], [ids[140]], ids[141:146], *([i] for i in ids[146:])]
    expected, found = (_steps(device, package, steps) for device in (Device("cpu", library_path()), metal_device()))
    np.testing.assert_array_equal(found, expected)
    session = ort.InferenceSession(long / "engine.onnx", provider_options())
    assert len(placement(session)) == 1
    assert on_the_cpu(session)["BitLinear"] == 1  # the head, with its activations of 16 bits


def _steps(device: Device, package: PackageInfo, steps: Sequence[Sequence[int]]) -> np.ndarray:
    session = DecoderSession(package, device, threads=1)
    cache = session.new_cache()
    return np.stack([session.step(ids, cache) for ids in steps])


def test_caches_are_read_and_written_where_they_are(base: Path) -> None:
    session = DecoderSession(PackageInfo.open(base), metal_device(), threads=1)
    cache = session.new_cache()
    session.step([3, 4, 5], cache)
    before = counters()
    session.step([6], cache)
    after = counters()
    assert after.cache_address == cache.buffers[0].ctypes.data
    # An id, two lengths, and the place from which logits are wanted in; the logits out.
    assert after.copied_in - before.copied_in <= 64
    assert after.copied_out - before.copied_out <= 211 * 4
    assert np.all(cache.buffers[0][0, :, 3] != 0)
    assert not np.any(cache.buffers[0][0, :, 4:])


def test_a_cache_grows_and_its_memory_goes(base: Path) -> None:
    session = DecoderSession(PackageInfo.open(base), metal_device(), threads=1)
    cpu = DecoderSession(PackageInfo.open(base), Device("cpu", library_path()), threads=1)
    cache, other = session.new_cache(), cpu.new_cache()
    ids = [token(position, 2, 211) for position in range(90)]
    for chunk in (ids[:60], ids[60:]):
        np.testing.assert_array_equal(session.step(chunk, cache), cpu.step(chunk, other))
    assert cache.capacity > 64


def test_int8_caches(base: Path) -> None:
    package = PackageInfo.open(base)
    cpu = Device("cpu", library_path())
    scales = measure_kv_scales(package, cpu, threads=1)
    sessions = [DecoderSession(package, device, threads=1, kv_scales=scales) for device in (cpu, metal_device())]
    caches = [session.new_cache() for session in sessions]
    for ids in ([1, 2, 3, 4, 5], [6], [7]):
        expected, found = (s.step(ids, c) for s, c in zip(sessions, caches, strict=True))
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(caches[1].buffers[0], caches[0].buffers[0])
    assert caches[1].buffers[0].dtype == np.int8


def test_other_bits_of_activations_stay_on_the_cpu(base: Path) -> None:
    package = PackageInfo.open(base)
    cpu, metal = (
        DecoderSession(package, device, threads=1, activation_bits=16)
        for device in (Device("cpu", library_path()), metal_device())
    )
    np.testing.assert_array_equal(metal.step([1, 2, 3], metal.new_cache()), cpu.step([1, 2, 3], cpu.new_cache()))


def test_sequences_of_a_batch(base: Path) -> None:
    """Prompts of different lengths, then a token of each, then of some."""
    model = Model(PackageInfo.open(base), metal_device())
    session = model.open(max_batch=4, draft_tokens=0)
    texts = [[token(position, text, 211) for position in range(length)] for text, length in enumerate((3, 20, 9))]
    sequences = []
    for ids in texts:
        sequence = session.open(40)
        assert sequence is not None
        sequences.append(sequence)
        np.testing.assert_array_equal(session.prefill(sequence, ids, logits=True), _reference(base, ids))
    for chosen in ((0, 1, 2), (2, 0)):
        found = session.decode([sequences[i] for i in chosen], [17 + i for i in chosen])
        for row, i in zip(found, chosen, strict=True):
            texts[i].append(17 + i)
            np.testing.assert_array_equal(row, _reference(base, texts[i]))


def _reference(package: Path, ids: Sequence[int]) -> np.ndarray:
    return PackageLogits(package, library_path())(np.array(ids))[-1]


def test_two_sessions_map_the_weights(tmp_path: Path) -> None:
    package = decoder_package(tmp_path, WIDE, GROUPS)
    first = counters()
    one = ProviderLogits(package)
    second = counters()
    other = ProviderLogits(package)
    third = counters()
    assert second.constants_mapped - first.constants_mapped == third.constants_mapped - second.constants_mapped > 0
    assert third.constants_copied - second.constants_copied < 0.1 * (third.constants_mapped - second.constants_mapped)
    expected = one(IDS[:5])
    del one
    np.testing.assert_array_equal(other(IDS[:5]), expected)


def test_ordinary_memory_is_copied(base: Path) -> None:
    """Caches of a caller who knows nothing of the device, in place and not."""
    found, expected = ProviderLogits(base).session, PackageLogits(base, library_path()).session
    for in_place in (True, False):
        left, right = _bound_run(found, in_place), _bound_run(expected, in_place)
        for a, b in zip(left, right, strict=True):
            np.testing.assert_array_equal(a, b)


def _bound_run(session: ort.InferenceSession, in_place: bool) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    binding = session.io_binding()
    kept = []
    for layer in range(2):
        for part in ("key", "value"):
            past = rng.standard_normal((1, 2, 12, 16)).astype(np.float32)
            present = past if in_place else np.empty_like(past)
            kept += [past, present]
            binding.bind_ortvalue_input(f"past_key_values.{layer}.{part}", ort.OrtValue.ortvalue_from_numpy(past))
            value = ort.OrtValue.ortvalue_from_numpy(present)
            binding.bind_ortvalue_output(f"present.{layer}.{part}", value)
    binding.bind_cpu_input("input_ids", np.array([[5, 6]], np.int64))
    binding.bind_cpu_input("attention_mask", np.ones((1, 9), np.int64))
    binding.bind_output("logits")
    session.run_with_iobinding(binding)
    return [*kept, binding.get_outputs()[-1].numpy()] if not in_place else kept
