"""A real model on the emulated device: the tokens of the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from metal_provider import metal_device, on_the_cpu, placement, provider_options

from bitnet_onnx.custom_ops import library_path
from bitnet_onnx.runtime import Device, PackageInfo
from bitnet_onnx.runtime.session import DecoderSession

pytestmark = [
    pytest.mark.zoo,
    pytest.mark.skipif(library_path() is None, reason="the operator library is not built: no C++17 compiler"),
]


def _greedy(device: Device, package: Path, prompt: list[int], count: int) -> tuple[list[int], np.ndarray]:
    session = DecoderSession(PackageInfo.open(package), device)
    cache = session.new_cache()
    ids, found = prompt, []
    for _ in range(count):
        logits = session.step(ids, cache)
        ids = [int(logits.argmax())]
        found.append(ids[0])
    return found, logits


def test_a_few_tokens_are_those_of_the_cpu(zoo_package: Path) -> None:
    # "The capital of Japan is"; a token takes two seconds.
    prompt = [504, 3575, 282, 5606, 314]
    expected, left = _greedy(Device("cpu", library_path()), zoo_package, prompt, 3)
    found, right = _greedy(metal_device(), zoo_package, prompt, 3)
    assert found == expected
    np.testing.assert_array_equal(right, left)


def test_all_layers_are_one_part(zoo_package: Path) -> None:
    metal_device()
    session = ort.InferenceSession(zoo_package / "engine.onnx", provider_options())
    assert placement(session) == [
        {
            "BitEmbedding": 1,
            "BitLinear": 120,
            "GroupQueryAttention": 30,
            "Add": 60,
            "GatedActivation": 30,
            "Slice": 1,
        }
    ]
    # Lengths, and the head, whose activations have 16 bits.
    assert on_the_cpu(session) == {"ReduceSum": 1, "Sub": 1, "Cast": 2, "Shape": 1, "Squeeze": 1, "BitLinear": 1}
