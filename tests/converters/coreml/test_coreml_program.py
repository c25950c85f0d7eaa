"""What a saved Core ML package looks like to the system and to applications."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from coreml_packages import Saved, needs_coremltools, write_coreml
from random_decoders import BASE

from bitnet_onnx.converters.coreml import package as package_module
from bitnet_onnx.converters.coreml._attention import cache_shape
from bitnet_onnx.converters.coreml.options import CoreMLOptions, DeploymentTarget
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.errors import UnsupportedError
from bitnet_onnx.policy import Policy, Precision, Weights

pytestmark = needs_coremltools

SPEC = replace(BASE, context_length=40, tie_word_embeddings=True)
POLICY = Policy(Precision(Weights.TERNARY))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coreml(tmp_path_factory.mktemp("whole"), SPEC, POLICY)[0]


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = CoreMLOptions(DeploymentTarget.IOS26, split=True)
    return write_coreml(tmp_path_factory.mktemp("split"), SPEC, POLICY, options)[0]


def _ranges(described: object) -> dict[str, list[tuple[int, int]]]:
    return {
        given.name: [(size.lowerBound, size.upperBound) for size in given.type.multiArrayType.shapeRange.sizeRanges]
        for given in described.input
    }


def test_one_function_takes_any_number_of_tokens(whole: Path) -> None:
    described = Saved.read(whole).model.description
    assert _ranges(described) == {"inputIds": [(1, 1), (1, 40)], "causalMask": [(1, 1), (1, 1), (1, 40), (1, 40)]}
    types = described.input[0].type.multiArrayType, described.input[1].type.multiArrayType
    assert [kind.ArrayDataType.Name(kind.dataType) for kind in types] == ["INT32", "FLOAT16"]
    assert [output.name for output in described.output] == ["logits"]
    assert {state.name: tuple(state.type.stateType.arrayType.shape) for state in described.state} == {
        "keyCache": cache_shape(SPEC),
        "valueCache": cache_shape(SPEC),
    }
    assert not described.functions


def test_two_functions_share_every_weight(whole: Path, split: Path) -> None:
    one, two = Saved.read(whole), Saved.read(split)
    described = {function.name: function for function in two.model.description.functions}
    assert two.model.description.defaultFunctionName == "prefill"
    assert _ranges(described["prefill"]) == _ranges(one.model.description)
    assert _ranges(described["decode"])["inputIds"] == []
    assert tuple(described["decode"].input[0].type.multiArrayType.shape) == (1, 1)
    assert _ranges(described["decode"])["causalMask"] == [(1, 1), (1, 1), (1, 1), (1, 40)]
    prefill, decode = two.functions["prefill"], two.functions["decode"]
    assert set(prefill.offsets()) == set(decode.offsets())
    assert one.weights == two.weights
    assert not decode.of_type("tile")


def test_targets(whole: Path, split: Path) -> None:
    one, two = Saved.read(whole).model, Saved.read(split).model
    assert (one.specificationVersion, two.specificationVersion) == (9, 10)
    assert {function.opset for function in one.mlProgram.functions.values()} == {"CoreML8"}
    assert {function.opset for function in two.mlProgram.functions.values()} == {"CoreML9"}


def test_a_state_is_read_once_and_then_only_right_behind_its_updates(split: Path) -> None:
    for function in Saved.read(split).functions.values():
        events = [
            (op.type, op.inputs["input"].arguments[0].name)
            for op in function.operations
            if op.type in ("read_state", "write_state")
        ]
        reads = [("read_state", "keyCache"), ("read_state", "valueCache")]
        update = [(kind, name) for name in ("keyCache", "valueCache") for kind in ("write_state", "read_state")]
        assert events == reads + SPEC.num_hidden_layers * update
        written = [op.inputs["data"].arguments[0].name for op in function.of_type("write_state")]
        read = [op.outputs[0].name for op in function.of_type("read_state")]
        # Every update is made from what the read before it gave.
        for name, source in zip(written, read, strict=False):
            assert function.named(name).inputs["x"].arguments[0].name == source


def test_names_are_those_of_roles_and_stand_before_their_use(split: Path) -> None:
    for function in Saved.read(split).functions.values():
        known = {given.name for given in function.message.inputs}
        for op in function.operations:
            used = [binding.name for given in op.inputs.values() for binding in given.arguments if binding.name]
            assert set(used) <= known, op.type
            made = [output.name for output in op.outputs]
            assert not known & set(made)
            assert all(re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name) for name in made)
            known |= set(made)
        for role in ("layers_0_attn_q_proj", "layers_1_mlp_down_proj", "layers_0_input_norm", "norm", "lm_head"):
            assert role in known
        # The stream is wide, matrices and what they read are not.
        assert function.element("layers_1_output") == "FLOAT32"
        for op in function.of_type("linear"):
            names = [op.inputs[name].arguments[0].name for name in ("x", "weight")]
            assert [function.element(name) for name in (*names, op.outputs[0].name)] == 3 * ["FLOAT16"]


def test_a_tied_head_and_its_embedding_are_stored_once(whole: Path) -> None:
    main = Saved.read(whole).functions["main"]
    looked_up = main.named("embed_tokens_codes").attributes["val"].blobFileValue.offset
    multiplied = main.named("embed_tokens_weight").inputs["data"].arguments[0].value.blobFileValue.offset
    assert looked_up == multiplied
    assert main.named("lm_head_sum").inputs["weight"].arguments[0].name == "embed_tokens_weight"


def test_layers_that_read_one_input_quantize_it_once(whole: Path) -> None:
    main = Saved.read(whole).functions["main"]
    read = {op.outputs[0].name: op.inputs["x"].arguments[0].name for op in main.of_type("linear")}
    assert len({read[f"layers_0_attn_{name}_proj_sum"] for name in "qkv"}) == 1
    assert len({read[f"layers_0_mlp_{name}_proj_sum"] for name in ("gate", "up")}) == 1
    assert len(main.of_type("round")) == 4 * SPEC.num_hidden_layers


def test_metadata(split: Path) -> None:
    metadata = Saved.read(split).metadata
    assert metadata["co.huggingface.exporters.name"] == "random"
    assert metadata["com.github.apple.coremltools.version"]
    manifest = json.loads(metadata["com.github.bitnet-onnx.manifest"])
    assert manifest["format"] == 1
    assert (manifest["context"], manifest["weights"], manifest["target"]) == (40, "lut", "iOS26")
    assert manifest["functions"] == ["prefill", "decode"]
    assert manifest["sizes"]["family"] == "llama"
    assert manifest["sizes"]["head_dim"] == SPEC.head_dim
    assert set(manifest["precisions"]) == {role for role, _ in SPEC.matrices()}
    up = manifest["precisions"]["layers.1.mlp.up_proj"]
    assert (up["weights"], up["group_size"], up["activation_bits"], up["method"]) == ("ternary", 0, 8, "absmean")
    assert 0.3 < up["relative_error"] < 0.7
    assert manifest["scaled_inputs"] == 0


def test_the_same_model_gives_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    again, _ = write_coreml(tmp_path, SPEC, POLICY)
    files = [path.relative_to(whole) for path in sorted(whole.rglob("*")) if path.is_file()]
    assert [str(path) for path in files] == [package_module.MODEL_FILE, package_module.WEIGHT_FILE, "Manifest.json"]
    assert all((whole / path).read_bytes() == (again / path).read_bytes() for path in files)


def test_coremltools_reads_both_functions_again(split: Path) -> None:
    from bitnet_onnx.converters.coreml._tools import quiet

    with quiet():
        from coremltools.converters.mil.frontend.milproto.load import load
        from coremltools.models import MLModel

        model = MLModel(str(split), skip_model_load=True)
        # Types of all values are inferred once more, and weights decoded.
        program = load(model.get_spec(), model.get_spec().specificationVersion, model.weights_dir)
    assert sorted(program.functions) == ["decode", "prefill"]
    for function in program.functions.values():
        (logits,) = function.outputs
        assert logits.shape[-1] == SPEC.vocab_size


def test_a_cache_that_is_too_large(tmp_path: Path) -> None:
    spec: DecoderSpec = replace(BASE, context_length=1 << 30)
    with pytest.raises(UnsupportedError, match=r"137438953472 bytes, more than the limit of 4294967296; .*--context"):
        write_coreml(tmp_path, spec, POLICY)
