"""Packages of stock and standard operators: made of the zoo's smallest model, opened by everybody, and read back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from genai import genai_tokens
from package_logits import PackageLogits

import bitnet_onnx
from bitnet_onnx import SamplingParameters
from bitnet_onnx.converters import Fallback, convert
from bitnet_onnx.errors import InputError, PackageError, UnsupportedError
from bitnet_onnx.evaluation import Options, validate
from bitnet_onnx.metrics import relative_error
from bitnet_onnx.package_format import Operators
from bitnet_onnx.policy import Policy, Precision, Weights
from bitnet_onnx.runtime import load
from bitnet_onnx.runtime.engine.engine import Engine
from bitnet_onnx.runtime.engine.request import EngineRequest, TokenEvent

PROMPT, COUNT = "In the beginning", 32
#: Of logits against the operator library's: activations are rounded in blocks of columns and not whole.
AGAINST_THE_LIBRARY = 0.05
OTHERS = ("stock", "standard")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("forms")
    for name in Operators:
        bitnet_onnx.convert("bitnet-tiny", folder / name, operator=str(name))
    return {str(name): folder / name for name in Operators}


def generated(package: Path, **options: object) -> list[int]:
    model = load(package, **options)
    return list(model.generate(PROMPT, SamplingParameters(max_new_tokens=COUNT)).ids)


@pytest.mark.parametrize("name", OTHERS)
def test_greedy_tokens_are_those_of_our_operators(name: str, packages: dict[str, Path]) -> None:
    expected = generated(packages["bitnet"])
    assert len(expected) == COUNT
    assert generated(packages[name]) == expected
    ids = load(packages[name]).encode(PROMPT)
    assert genai_tokens(packages[name], ids, COUNT) == expected


@pytest.mark.parametrize("name", OTHERS)
def test_logits_are_near_those_of_the_library(name: str, packages: dict[str, Path], operator_library: Path) -> None:
    ids = np.arange(300, 364)
    expected = PackageLogits(packages["bitnet"], operator_library)(ids)
    found = PackageLogits(packages[name])(ids)
    assert 1e-4 < relative_error(expected, found) < AGAINST_THE_LIBRARY
    # What ONNX Runtime makes of the function bodies is as far away.
    assert relative_error(expected, PackageLogits(packages["bitnet"])(ids)) < AGAINST_THE_LIBRARY


@pytest.mark.parametrize("name", OTHERS)
def test_onnxruntime_warns_of_nothing(name: str, packages: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    """At its own log level, which is that of other people's programs; `TensorScatter` would warn at each call."""
    session = ort.InferenceSession(packages[name] / "model.onnx", providers=["CPUExecutionProvider"])
    past = {
        value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
        for value in session.get_inputs()
        if value.name.startswith("past")
    }
    feeds = {"input_ids": np.ones((1, 3), np.int64), "attention_mask": np.ones((1, 3), np.int64), **past}
    session.run(None, feeds)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", OTHERS)
def test_there_is_nothing_of_ours_in_the_files(name: str, packages: dict[str, Path]) -> None:
    allowed = {"", "com.microsoft"} if name == "stock" else {""}
    for file in ("model.onnx", "engine.onnx"):
        path = packages[name] / file
        model = onnx.load(path, load_external_data=False)
        assert not model.functions
        assert {node.domain for node in model.graph.node} == allowed
        assert {opset.domain for opset in model.opset_import} == allowed
        if name == "standard":
            onnx.checker.check_model(str(path), full_check=True)
    inputs = [[value.name for value in onnx.load(packages[key] / "model.onnx").graph.input] for key in (name, "bitnet")]
    assert inputs[0] == inputs[1]


@pytest.mark.parametrize("name", Operators)
def test_manifest_and_inspection_name_the_operators(name: str, packages: dict[str, Path]) -> None:
    operator = json.loads((packages[name] / "bitnet_onnx.json").read_text())["operator"]
    assert operator.get("form", "bitnet") == name
    found = bitnet_onnx.inspect(packages[name])
    assert found.operators == name
    assert ("function bodies" in " ".join(found.readers)) == (name == "bitnet")
    assert any("16-bit" in layer.stored for layer in found.layers) == (name == "bitnet")


@pytest.mark.parametrize("name", OTHERS)
def test_a_package_is_read_back_without_loss(name: str, packages: dict[str, Path], tmp_path: Path) -> None:
    convert(packages[name], tmp_path / "back")
    for file in ("model.onnx", "engine.onnx", "model.onnx.data"):
        assert (tmp_path / "back" / file).read_bytes() == (packages["bitnet"] / file).read_bytes()


POLICIES = {
    "groups": Policy(Precision(Weights.INT4, 32), Precision(Weights.INT8, 0, 16)),
    "float activations": Policy(Precision(Weights.INT6, 64, 0), Precision(Weights.INT8, 32, 0)),
    "ternary": Policy(Precision(Weights.TERNARY, 0, 0), Precision(Weights.INT4, 96, 8)),
    "two bits": Policy(Precision(Weights.INT2, 32), Precision(Weights.FLOAT32)),
}


@pytest.mark.parametrize("model", ["tied_mha", "biased_mqa"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", OTHERS)
def test_every_precision_is_read_back_and_holds(
    name: str, policy: str, model: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    source = tiny_checkpoint(model)
    convert(source, tmp_path / "direct", policy=POLICIES[policy])
    convert(source, tmp_path / name, policy=POLICIES[policy], operators=Operators(name))
    convert(tmp_path / name, tmp_path / "back", policy=Policy(Precision(Weights.KEEP), Precision(Weights.KEEP, 0, 16)))
    again, direct = (tmp_path / folder / "model.onnx.data" for folder in ("back", "direct"))
    assert again.read_bytes() == direct.read_bytes()
    found = validate(tmp_path / name, source, Options(tokens=(1, 9)))
    assert found.holds, found
    assert found.runtime == f"{name} operators"


@pytest.mark.parametrize("name", OTHERS)
def test_a_weight_that_was_changed_is_found(
    name: str, packages: dict[str, Path], tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    convert(tiny_checkpoint("tied_mha"), tmp_path / name, operators=Operators(name))
    assert validate(tmp_path / name, tiny_checkpoint("tied_mha"), Options(tokens=(3,))).holds
    data = tmp_path / name / "model.onnx.data"
    content = bytearray(data.read_bytes())
    content[40] ^= 1
    data.write_bytes(content)
    found = validate(tmp_path / name, tiny_checkpoint("tied_mha"), Options(tokens=(3,)))
    assert not found.holds
    assert any(check.differing for check in found.weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest["operator"].update(form="other"), "operator.form is 'other'"),
        (lambda manifest: manifest["operator"].update(form=["stock"]), "operator.form is ['stock']"),
        (lambda manifest: manifest["layers"][0].update(zero_point=None), "has no zero_point"),
        (lambda manifest: manifest["layers"][0].update(zero_point=1 << 40), "zero_point is 1099511627776"),
        (lambda manifest: manifest["layers"][0].update(weights="int3"), "int3"),
        (lambda manifest: manifest["layers"][1].update(weights="int8"), "the configuration demands"),
        (lambda manifest: manifest["layers"][1].update(group_size=64), "the configuration demands"),
        (lambda manifest: manifest.update(layers=[]), "the configuration demands float32"),
    ],
)
def test_a_manifest_that_lies_is_refused(
    change: Callable[[dict], None], message: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    package = tmp_path / "package"
    convert(tiny_checkpoint("untied_gqa"), package, operators=Operators.STOCK)
    manifest = json.loads((package / "bitnet_onnx.json").read_text())
    change(manifest)
    (package / "bitnet_onnx.json").write_text(json.dumps(manifest))
    with pytest.raises(PackageError) as caught:
        convert(package, tmp_path / "back")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "back").exists()


def test_what_others_than_our_operators_do_not_have_is_refused(packages: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exact fallback is a function body"):
        bitnet_onnx.convert("bitnet-tiny", tmp_path / "package", operator="stock", fallback="exact")
    with pytest.raises(InputError, match="operator is 'onnx': choose one of bitnet, stock, standard"):
        bitnet_onnx.convert("bitnet-tiny", tmp_path / "package", operator="onnx")
    with pytest.raises(InputError, match="exact fallback"):
        convert(packages["stock"], tmp_path / "package", operators=Operators.STANDARD, fallback=Fallback.EXACT)
    for name in OTHERS:
        with pytest.raises(UnsupportedError, match=f"{name} operators round activations"):
            load(packages[name], activation_bits=16)
    with pytest.raises(UnsupportedError, match="int8 cache needs GroupQueryAttention"):
        load(packages["standard"], kv="int8")
    with pytest.raises(UnsupportedError, match="--operator stock"):
        Engine.open(packages["standard"])
    assert not (tmp_path / "package").exists()


def test_the_engine_and_an_int8_cache_take_stock_operators(packages: dict[str, Path], tmp_path: Path) -> None:
    package = shutil.copytree(packages["stock"], tmp_path / "stock")
    expected = generated(package)
    assert generated(package, kv="int8")[:8] == expected[:8]
    request = EngineRequest(tuple(load(package).encode(PROMPT)), SamplingParameters(max_new_tokens=COUNT))
    with Engine.open(package) as engine:
        answers = [engine.submit(request) for _ in range(3)]
        for answer in answers:
            assert [event.id for event in answer if isinstance(event, TokenEvent)] == expected
