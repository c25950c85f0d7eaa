"""Others' quantizers in a float32 package: their grids, their cost, and activations that round as ours do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bitnet_onnx.benchmarks._weight_peers import PEERS, Peer, write_peer
from bitnet_onnx.converters import convert
from bitnet_onnx.policy import Policy, Precision, Weights
from bitnet_onnx.runtime import load

FLOAT = Precision(Weights.FLOAT32)
BY_NAME = {peer.name: peer for peer in PEERS}


@pytest.fixture(scope="module")
def package(tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("peers") / "package"
    convert(tiny_checkpoint("untied_gqa"), output, policy=Policy(FLOAT, FLOAT))
    return output


@pytest.mark.parametrize("name", [peer.name for peer in PEERS if peer.round is not None])
def test_every_block_has_as_many_values_as_its_bits_allow(name: str) -> None:
    peer = BY_NAME[name]
    assert peer.round is not None
    weight = np.random.default_rng(0).standard_normal((48, 256)).astype(np.float32)
    found = peer.round(weight)
    assert found.shape == weight.shape
    bits = 4 if name.startswith("GGUF") else int(name.partition(" bit")[0].split()[-1])
    block = 32 if name.startswith("GGUF") else int(name.split(", ")[1].split()[1])
    blocks = found.reshape(48, -1, block)
    values = max(len(np.unique(part)) for row in blocks for part in row)
    assert values <= 1 << bits
    # The largest weight of a block sets its step; none is moved by more than half of it, or clipped by a whole one.
    step = np.abs(weight.reshape(48, -1, block)).max(axis=2) / (1 << (bits - 1))
    error = np.abs(blocks - weight.reshape(48, -1, block)).max(axis=2)
    assert (error <= 1.05 * step).all()


def test_names_and_bits() -> None:
    assert {peer.name: peer.bits for peer in PEERS} == {
        "float32 weights": 32,
        "GGUF Q4_0": 4.5,
        "MatMulNBits 4 bit, block 32, symmetric": 5,
        "MatMulNBits 4 bit, block 64, asymmetric": 4.5625,
        "MatMulNBits 2 bit, block 32, asymmetric": 3.0625,
        "round to nearest 3 bit, group 64": 3.5,
        "MatMulNBits 4 bit, block 32, asymmetric": 5.125,
        "MatMulNBits 4 bit, block 128, asymmetric": 4.28125,
        "MatMulNBits 2 bit, block 64, asymmetric": 2.53125,
    }


def logits(path: Path) -> np.ndarray:
    model = load(path)
    return model.session.forward(list(range(100, 130)), model.session.new_cache())


def test_floats_stay_what_they_are(package: Path, tmp_path: Path) -> None:
    write_peer(package, tmp_path / "out", Peer("nothing", 32, None, activation_bits=0))
    np.testing.assert_array_equal(logits(tmp_path / "out"), logits(package))


def test_the_layers_compute_as_ours_do(
    package: Path, tiny_checkpoint: Callable[[str], Path], tmp_path: Path, operator_library: Path
) -> None:
    """Our own int8 weights in floats, with rounded inputs, are our int8 package."""
    ours = tmp_path / "ours"
    convert(tiny_checkpoint("untied_gqa"), ours, policy=Policy(Precision(Weights.INT8, 0), FLOAT))

    def rounded(weight: np.ndarray) -> np.ndarray:
        tensor = Precision(Weights.INT8, 0).quantize(weight)
        assert tensor is not None
        return tensor.dequantize()

    peer = Peer("ours", 8, rounded)
    write_peer(package, tmp_path / "peer", peer)
    write_peer(package, tmp_path / "floats", replace(peer, activation_bits=0))
    expected = logits(ours)
    error = np.abs(logits(tmp_path / "peer") - expected).max()
    assert error < 0.2 * np.abs(logits(tmp_path / "floats") - expected).max()
    assert error < 0.05
