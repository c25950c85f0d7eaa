"""Activations at other bits than the file says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from bitnet_onnx.converters import convert
from bitnet_onnx.errors import InputError, PackageError, UnsupportedError
from bitnet_onnx.policy import Policy, Precision, Weights
from bitnet_onnx.runtime import Device, Model, PackageInfo, load
from bitnet_onnx.runtime._derived_graph import derived_graph
from bitnet_onnx.runtime.engine.engine import Engine, EngineSettings
from bitnet_onnx.runtime.engine.request import EngineRequest, TokenEvent
from bitnet_onnx.runtime.sampling import SamplingParameters

IDS = list(range(100, 140))
BLOCKS, HEAD = Precision(Weights.INT4), Precision(Weights.INT8, 0, 16)


def logits(model: Model) -> np.ndarray:
    return model.session.forward(IDS, model.session.new_cache())


@pytest.fixture(scope="module")
def make(tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    root, made = tmp_path_factory.mktemp("activations"), {}

    def get(blocks: int, head: int) -> Path:
        if (blocks, head) not in made:
            policy = Policy(replace(BLOCKS, activation_bits=blocks), replace(HEAD, activation_bits=head))
            made[blocks, head] = root / f"{blocks}-{head}"
            convert(tiny_checkpoint("untied_gqa"), made[blocks, head], policy=policy)
        return made[blocks, head]

    return get


@pytest.mark.parametrize(("bits", "head"), [(8, 16), (16, 16), (0, 0)])
def test_a_package_computes_as_if_it_had_been_converted_so(
    make: Callable[..., Path], operator_library: Path, bits: int, head: int
) -> None:
    device = Device(operator_library=operator_library)
    expected = logits(load(make(bits, head), device=device))
    for package in (make(8, 16), make(0, 16)):
        np.testing.assert_array_equal(logits(load(package, device=device, activation_bits=bits)), expected)
    assert (logits(load(make(8, 16), device=device)) != expected).any() == (bits != 8)


def test_the_engine_does_the_same(make: Callable[..., Path], operator_library: Path) -> None:
    request = EngineRequest(tuple(IDS), SamplingParameters(max_new_tokens=6), top_logprobs=1)

    def answer(package: Path, bits: int | None) -> list[float]:
        with Engine.open(
            package, EngineSettings(activation_bits=bits), device=Device(operator_library=operator_library)
        ) as engine:
            tokens = [event for event in engine.submit(request) if isinstance(event, TokenEvent)]
            return [token.logprobs.chosen for token in tokens if token.logprobs is not None]

    expected = answer(make(0, 0), None)
    assert len(expected) > 0
    assert answer(make(8, 16), 0) == expected
    assert answer(make(8, 16), None) != expected


def test_function_bodies_are_for_the_bits_of_the_file(make: Callable[..., Path]) -> None:
    package, device = make(8, 16), Device()
    with pytest.raises(UnsupportedError, match="computes with activations of 8 bits, and other ones need the operator"):
        load(package, device=device, activation_bits=0)
    np.testing.assert_array_equal(
        logits(load(package, device=device, activation_bits=8)), logits(load(package, device=device))
    )


def test_bits_that_cannot_be(make: Callable[..., Path], package_dir: Path) -> None:
    with pytest.raises(InputError, match="activation_bits is 4: it must be 0, 8 or 16"):
        load(make(8, 16), activation_bits=4)
    with pytest.raises(InputError, match="activations of 8 bits need layers of integer weights"):
        load(package_dir, activation_bits=8)
    np.testing.assert_array_equal(logits(load(package_dir, activation_bits=0)), logits(load(package_dir)))


def test_a_graph_may_not_name_other_files(fresh_package: Path) -> None:
    path = fresh_package / "model.onnx"
    model = onnx.load_model(path, load_external_data=False)
    tensor = next(one for one in model.graph.initializer if one.external_data)
    (entry,) = (one for one in tensor.external_data if one.key == "location")
    entry.value = "../elsewhere"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(PackageError, match=r"is stored in '../elsewhere', expected model.onnx.data"):
        load(fresh_package, activation_bits=0)
    path.write_bytes(b"\x08\x0a nothing of the kind")
    with pytest.raises(PackageError, match="not an ONNX graph"):
        load(fresh_package, activation_bits=0)


def test_the_data_stays_mapped(make: Callable[..., Path], operator_library: Path) -> None:
    """The changed graph has no copy of the weights in it."""
    info = PackageInfo.open(make(8, 16))
    graph = derived_graph(info.engine_path or info.model_path, [], ort.SessionOptions())
    assert len(graph) < (info.directory / "model.onnx.data").stat().st_size
