"""Packages out of the emitter against their source, and what a fault in one of them does to the verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coreml_packages import needs_coremltools
from random_decoders import BASE, FLOAT, SPECS, RandomDecoder, source

from bitnet_onnx.converters.coreml.options import CoreMLOptions, TernaryStorage
from bitnet_onnx.converters.coreml.package import write_bundle
from bitnet_onnx.converters.model import SourceModel
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.errors import PackageError
from bitnet_onnx.evaluation.mil import Options, Verification, Way
from bitnet_onnx.evaluation.mil._blob import BlobFile
from bitnet_onnx.evaluation.mil._protobuf import model_message
from bitnet_onnx.evaluation.mil.interpreter import Interpreter, Mode
from bitnet_onnx.evaluation.mil.package import open_package
from bitnet_onnx.evaluation.mil.program import FileValue
from bitnet_onnx.evaluation.mil.verify import compare
from bitnet_onnx.policy import Policy, Precision, Weights

pytestmark = needs_coremltools

HEAD = Precision(Weights.INT8, 0, 16)
TERNARY = Policy(Precision(Weights.TERNARY), HEAD)
INT4 = Policy(Precision(Weights.INT4, 32, 8), HEAD)
INT6 = Policy(Precision(Weights.INT6, 32, 0), Precision(Weights.INT6, 0, 8))
INT8 = Policy(Precision(Weights.INT8, 0, 8), Precision(Weights.INT4, 32, 0))
INT2 = Policy(Precision(Weights.INT2, 32, 8), HEAD)
SPARSE = CoreMLOptions(ternary=TernaryStorage.SPARSE)
SPLIT = CoreMLOptions(split=True)
TOKENS = (1, 6, 23)
MODEL = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


class Loud(RandomDecoder):
    """Embeddings of thousands in some features, as trained models have them in a few."""

    def read(self, role: str) -> np.ndarray:
        values = super().read(role)
        if role == "embed_tokens.weight":
            values = values.copy()
            values[:, ::16] *= 2000
        return values


def opened(spec: DecoderSpec, *, loud: bool = False) -> SourceModel:
    model = source(spec)
    tensors = Loud(spec) if loud else model.tensors
    return replace(model, tensors=tensors, sha256=lambda: "0" * 64)


def package(path: Path, model: SourceModel, policy: Policy, options: CoreMLOptions | None = None) -> Path:
    bundle = path / "p.mlpackage"
    bundle.mkdir()
    write_bundle(bundle, model, options or CoreMLOptions(), policy=policy)
    return bundle


def looked_at(bundle: Path, model: SourceModel, **options: Any) -> Verification:
    with open_package(bundle) as found:
        return compare(found, model, Options(**{"tokens": TOKENS, "float16": True} | options))


@pytest.mark.parametrize(
    ("policy", "options"),
    [(FLOAT, None), (TERNARY, None), (TERNARY, SPARSE), (INT4, SPLIT), (INT6, None), (INT8, None), (INT2, None)],
    ids=["float", "ternary", "sparse", "int4, split", "int6", "int8", "int2"],
)
def test_every_precision_holds(policy: Policy, options: CoreMLOptions | None, tmp_path: Path) -> None:
    model = opened(BASE)
    found = looked_at(package(tmp_path, model, policy, options), model)
    assert [check for check in found.weights if not check.holds] == []
    assert [check for check in (*found.logits, *found.layers) if not check.holds] == []
    assert not found.overflows
    assert found.holds
    assert len(found.weights) == len(list(BASE.tensors()))
    rounds = policy is not FLOAT
    assert {check.way for check in found.logits} == set(Way) - (set() if rounds else {Way.FLOATS})
    exact = [check for check in found.logits if check.way is (Way.FLOATS if rounds else Way.WHOLE)]
    assert len(exact) == len(TOKENS)
    assert max(check.error for check in exact) < 1e-5
    assert [check.layer for check in found.layers] == [0, 1]


@pytest.mark.parametrize(
    "name",
    [
        "tied",
        "biases",
        "layer norms and tied head with bias",
        "norms: both, rms",
        "norms: residual, layer",
        "parallel, both",
        "windows and rotations that alternate",
        "learned positions with offset",
        "rotary: dynamic",
        "query and key norms: head, rms",
        "like gpt-neox",
        "20 of 80 features rotated",
    ],
)
def test_decoders_of_all_kinds_hold(name: str, tmp_path: Path) -> None:
    model = opened(SPECS[name])
    found = looked_at(package(tmp_path, model, FLOAT), model)
    assert [check for check in (*found.weights, *found.logits, *found.layers) if not check.holds] == []
    assert found.holds
    assert max(check.error for check in found.logits if check.tolerance) < 1e-5


def logits(bundle: Path, mode: Mode, function: str = "main") -> np.ndarray:
    ids = np.array([[3, 1, 4, 1, 5, 9, 2, 6]])
    with open_package(bundle) as found:
        run = Interpreter(found, mode).run(function, {"inputIds": ids, "causalMask": np.zeros((1, 1, 8, 8))})
    return run.outputs["logits"]


@pytest.mark.parametrize("mode", Mode)
def test_both_ways_to_store_ternary_weights_are_the_same_model(mode: Mode, tmp_path: Path) -> None:
    model = opened(BASE)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = package(tmp_path / "a", model, TERNARY), package(tmp_path / "b", model, TERNARY, SPARSE)
    assert (first / WEIGHTS).read_bytes() != (second / WEIGHTS).read_bytes()
    np.testing.assert_array_equal(logits(first, mode), logits(second, mode))


@pytest.mark.parametrize("policy", [TERNARY, FLOAT], ids=["ternary", "float"])
@pytest.mark.parametrize("name", ["base", "sub-norms"])
def test_activations_of_thousands_overflow_nothing(name: str, policy: Policy, tmp_path: Path) -> None:
    model = opened(SPECS[name], loud=True)
    found = looked_at(package(tmp_path, model, policy), model, tokens=(9,))
    assert not found.overflows
    assert found.holds


def edited(bundle: Path, change: Callable[[Any], None]) -> None:
    message = model_message()()
    message.ParseFromString((bundle / MODEL).read_bytes())
    change(message.mlProgram.functions["main"].block_specializations["CoreML8"])
    (bundle / MODEL).write_bytes(message.SerializeToString())


def of(block: Any, name: str) -> Any:
    return next(operation for operation in block.operations if any(output.name == name for output in operation.outputs))


def flip_bit(bundle: Path, name: str, parameter: str) -> None:
    """Another lowest bit of a stored constant, `val` of its own or a parameter of an operation."""
    with open_package(bundle) as found:
        operation = next(one for one in found.program.functions["main"].operations if one.name == name)
        constant = operation.attributes["val"] if parameter == "val" else operation.inputs[parameter][0]
        assert isinstance(constant, FileValue)
        file = BlobFile(bundle / WEIGHTS)
        place = file.tensor(constant.offset, constant.type, name).offset
        file.close()
    data = bytearray((bundle / WEIGHTS).read_bytes())
    data[place] ^= 1
    (bundle / WEIGHTS).write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("policy", "name", "parameter", "role", "codes", "scales"),
    [
        (TERNARY, "layers_0_attn_q_proj_weight", "indices", "layers.0.attn.q_proj", 1, 0),
        (TERNARY, "embed_tokens_codes", "val", "embed_tokens", 1, 0),
        (TERNARY, "embed_tokens_factor", "val", "embed_tokens", 0, 1),
        (INT4, "layers_1_mlp_up_proj_weight", "data", "layers.1.mlp.up_proj", 1, 0),
        (INT4, "layers_1_mlp_up_proj_weight", "scale", "layers.1.mlp.up_proj", 0, 1),
        (INT6, "layers_1_mlp_up_proj_weight", "data", "layers.1.mlp.up_proj", 1, 0),
        (INT8, "lm_head_weight", "data", "lm_head", 1, 0),
        (FLOAT, "layers_1_mlp_up_proj_weight", "val", "layers.1.mlp.up_proj", 1, 0),
        (FLOAT, "layers_0_input_norm_weight", "val", "layers.0.input_norm", 1, 0),
    ],
)
def test_one_bit_of_the_weights(
    policy: Policy, name: str, parameter: str, role: str, codes: int, scales: int, tmp_path: Path
) -> None:
    model = opened(BASE)
    bundle = package(tmp_path, model, policy)
    flip_bit(bundle, name, parameter)
    found = looked_at(bundle, model, tokens=(3,), float16=False)
    (wrong,) = (check for check in found.weights if not check.holds)
    assert (wrong.role, wrong.differing, wrong.scales) == (role, codes, scales)
    assert wrong.first is not None
    assert not found.holds


def test_the_scale_of_a_ternary_matrix(tmp_path: Path) -> None:
    model = opened(BASE)
    bundle = package(tmp_path, model, TERNARY)

    def change(block: Any) -> None:
        floats = of(block, "layers_0_attn_q_proj_factor").attributes["val"].immediateValue.tensor.floats
        floats.values[0] = float(np.nextafter(np.float32(floats.values[0]), np.float32(1)))

    edited(bundle, change)
    found = looked_at(bundle, model, tokens=(3,), float16=False)
    (wrong,) = (check for check in found.weights if not check.holds)
    assert (wrong.role, wrong.differing, wrong.scales) == ("layers.0.attn.q_proj", 0, 64)
    # One unit in the last place is far below what logits show.
    assert all(check.holds for check in (*found.logits, *found.layers))


def test_a_read_of_a_state_that_comes_too_early(tmp_path: Path) -> None:
    """What merging two reads makes of a program: later layers find no tokens before the last ones."""
    model = opened(BASE)
    bundle = package(tmp_path, model, FLOAT)

    def merge(block: Any) -> None:
        for operation in block.operations:
            for argument in operation.inputs.values():
                for binding in argument.arguments:
                    if binding.name == "layers_1_keyCache":
                        binding.name = "keyCache_read"

    edited(bundle, merge)
    found = looked_at(bundle, model, float16=False)
    assert not found.holds
    assert all(check.holds for check in found.weights)
    assert [check.layer for check in found.layers if not check.holds] == [1]
    assert not any(check.holds for check in found.logits if check.tokens > 1)


@pytest.mark.parametrize(("name", "layer"), [("layers_0_attn_q_proj", 0), ("layers_1_output", 1)])
def test_a_wrong_operation_is_found_in_its_layer(name: str, layer: int, tmp_path: Path) -> None:
    model = opened(BASE)
    bundle = package(tmp_path, model, FLOAT)

    def swap(block: Any) -> None:
        operation = of(block, name)
        operation.type = {"mul": "add", "add": "sub"}[operation.type]

    edited(bundle, swap)
    found = looked_at(bundle, model, float16=False)
    assert not found.holds
    assert [check.layer for check in found.layers if not check.holds] == [layer]


def test_a_package_of_another_model_is_refused(tmp_path: Path) -> None:
    model = opened(BASE)
    bundle = package(tmp_path, model, FLOAT)
    with pytest.raises(PackageError, match="hidden_size is 64, that of the source is 32"):
        looked_at(bundle, opened(replace(BASE, hidden_size=32)))
    other = replace(opened(BASE), tensors=RandomDecoder(BASE, 1), sha256=lambda: "1" * 64)
    found = looked_at(bundle, other, tokens=(3,), float16=False)
    assert not any(check.holds for check in found.weights)
    assert len(found.warnings) == 1
