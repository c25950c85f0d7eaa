"""Packages against their sources: what is right holds, and what is wrong is found and located."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from family_models import FAMILY_MODELS, shapes_of, write_family_checkpoint
from random_decoders import SPECS, RandomDecoder, write
from tiny_models import TINY, write_checkpoint

from bitnet_onnx.converters import Fallback, convert
from bitnet_onnx.converters._package_graph import read_graph
from bitnet_onnx.converters.checkpoints._files import BinaryFile
from bitnet_onnx.decoder import Norm, NormPlacement
from bitnet_onnx.errors import InputError, PackageError
from bitnet_onnx.evaluation import Measure, Options, Validation, Way, validate
from bitnet_onnx.evaluation._linear import PolicyRule
from bitnet_onnx.evaluation._operators import check_operators, linear_nodes
from bitnet_onnx.evaluation._session import PackageSession, hidden_name, load_graph
from bitnet_onnx.evaluation.reference import Prompt, forward
from bitnet_onnx.package_format import ENGINE, MANIFEST, MODEL, MODEL_DATA
from bitnet_onnx.packing import packed_shape
from bitnet_onnx.policy import Policy, Precision, Weights
from bitnet_onnx.runtime import Device, PackageInfo
from bitnet_onnx.runtime.package import Architecture

FLOAT = Precision(Weights.FLOAT32)
INT4, INT8 = Precision(Weights.INT4), Precision(Weights.INT8, 0, 16)
POLICIES = {
    "default": Policy(),
    "float32": Policy(FLOAT, FLOAT),
    "ternary": Policy(Precision(Weights.TERNARY), Precision(Weights.INT6)),
    "q, k and v apart": Policy(INT4, INT8, (("*.k_proj", INT8), ("*.v_proj", FLOAT), ("*.up_proj", INT8))),
    "16-bit activations": Policy(Precision(Weights.INT8, 0, 16), Precision(Weights.INT4, 64, 16)),
    "float activations": Policy(Precision(Weights.INT4, 32, 0), Precision(Weights.INT8, 0, 0)),
}
FEW = Options(tokens=(1, 20))


def failing(found: Validation) -> list[str]:
    return [check.role for check in found.weights if not check.holds]


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("policy", POLICIES)
def test_what_was_converted_holds(
    name: str, policy: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path, operator_library: Path
) -> None:
    source, package = tiny_checkpoint(name), tmp_path / "package"
    convert(source, package, policy=POLICIES[policy])
    found = validate(package, source, replace(FEW, layers=()))
    assert found.holds
    assert (found.runtime, found.warnings) == ("operator library", ())
    rounds = policy not in {"float32", "float activations"}
    ways = [(1, Way.WHOLE), (20, Way.WHOLE), (20, Way.CACHED)]
    assert [(check.tokens, check.way) for check in found.logits] == [
        *([(1, Way.FLOATS), (20, Way.FLOATS)] if rounds else []),
        *ways,
    ]
    for check in found.logits:
        if check.measure is Measure.DIFFERENCE:
            assert check.tolerance == 1e-3
            assert check.value < 1e-4
    assert bool(found.operators) is rounds
    for layer in found.layers:
        assert (layer.error if layer.floats is None else layer.floats) < 1e-5


@pytest.mark.parametrize("name", FAMILY_MODELS)
def test_every_family_holds(name: str, tmp_path: Path, operator_library: Path) -> None:
    source = write_family_checkpoint(tmp_path / "source", FAMILY_MODELS[name], shapes_of(name))
    convert(source, tmp_path / "package")
    found = validate(tmp_path / "package", source, FEW)
    assert found.holds
    assert {check.value < 1e-4 for check in found.logits if check.way is Way.FLOATS} == {True}


@pytest.mark.parametrize("fallback", Fallback)
@pytest.mark.parametrize("name", ["untied_gqa", "bitnet"])
def test_function_bodies_hold(
    name: str, fallback: Fallback, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    convert(tiny_checkpoint(name), tmp_path / "package", fallback=fallback)
    found = validate(tmp_path / "package", tiny_checkpoint(name), replace(FEW, fallback=True))
    assert found.holds
    assert found.runtime == f"{fallback} function bodies"
    assert {check.value < 1e-4 for check in found.logits if check.way is Way.FLOATS} == {True}
    assert len(found.operators) == (0 if fallback is Fallback.FAST else 9)


@pytest.fixture(scope="module")
def original(tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    package = tmp_path_factory.mktemp("original") / "package"
    convert(tiny_checkpoint("biased_mqa"), package)
    return package


@pytest.fixture
def package(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "package"))


@pytest.fixture
def check(package: Path, tiny_checkpoint: Callable[[str], Path]) -> Callable[..., Validation]:
    def run(**options: object) -> Validation:
        return validate(package, tiny_checkpoint("biased_mqa"), replace(FEW, **options))

    return run


def change(
    package: Path, name: str, edit: Callable[[bytearray], None], files: tuple[str, ...] = (MODEL, ENGINE)
) -> None:
    """Edit the bytes of an initializer, in the graphs or in their data."""
    for file in files:
        model = onnx.load_model(package / file, load_external_data=False)
        (tensor,) = (one for one in model.graph.initializer if one.name == name)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            fields = {entry.key: int(entry.value) for entry in tensor.external_data if entry.value.isdecimal()}
            data = bytearray((package / MODEL_DATA).read_bytes())
            part = data[fields["offset"] : fields["offset"] + fields["length"]]
            edit(part)
            data[fields["offset"] : fields["offset"] + fields["length"]] = part
            (package / MODEL_DATA).write_bytes(data)
            return
        values = bytearray(tensor.raw_data)
        edit(values)
        tensor.raw_data = bytes(values)
        (package / file).write_bytes(model.SerializeToString())


def flip(place: int, bits: int = 1) -> Callable[[bytearray], None]:
    def edit(values: bytearray) -> None:
        values[place] ^= bits

    return edit


def test_a_flipped_code_in_the_data_file(package: Path, check: Callable[..., Validation]) -> None:
    change(package, "model.embed_tokens.weight", flip(0))
    found = check()
    assert not found.holds
    (wrong,) = (one for one in found.weights if not one.holds)
    assert (wrong.role, wrong.differing, wrong.scales, wrong.first) == ("embed_tokens", 1, 0, (0, 0))
    # The reference computes with what the package holds: the graph is not to blame.
    assert all(one.holds for one in found.logits)


def test_a_flipped_code_in_the_graph(package: Path, check: Callable[..., Validation]) -> None:
    """Rows of k follow those of q in one matrix."""
    rows, columns = TINY["biased_mqa"].config["num_attention_heads"] * 32, TINY["biased_mqa"].config["hidden_size"]
    before = int(np.prod(packed_shape(rows, columns, 4)))
    change(package, "model.layers.1.attn.qkv_proj.weight", flip(before + 4, 0x10))
    found = check()
    (wrong,) = (one for one in found.weights if not one.holds)
    assert (wrong.role, wrong.stored, wrong.differing) == ("layers.1.attn.k_proj", "int4", 1)
    assert wrong.first is not None
    assert wrong.first[0] == 1  # a word of each row lies beside that of the next


@pytest.mark.parametrize(
    ("name", "role", "scales"),
    [
        ("model.layers.0.mlp.down_proj.scale", "layers.0.mlp.down_proj", 1),
        ("model.layers.1.attn.qkv_proj.norm_weight", "layers.1.input_norm", 0),
        ("model.layers.1.attn.qkv_proj.bias", "layers.1.attn.q_proj.bias", 0),
        ("lm_head.norm_weight", "norm", 0),
    ],
)
def test_one_float_that_is_another(
    name: str, role: str, scales: int, package: Path, check: Callable[..., Validation]
) -> None:
    change(package, name, flip(0))
    (wrong,) = (one for one in check().weights if not one.holds)
    assert (wrong.role, wrong.scales, wrong.differing) == (role, scales, 1 - scales)


def test_layers_that_changed_places(package: Path, check: Callable[..., Validation]) -> None:
    for file in (MODEL, ENGINE):
        model = onnx.load_model(package / file, load_external_data=False)
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        for kind in ("weight", "scale"):
            first, second = (tensors[f"model.layers.{layer}.attn.o_proj.{kind}"] for layer in range(2))
            first.raw_data, second.raw_data = second.raw_data, first.raw_data
        (package / file).write_bytes(model.SerializeToString())
    assert failing(check()) == ["layers.0.attn.o_proj", "layers.1.attn.o_proj"]


def test_a_graph_that_reads_the_wrong_layer(package: Path, check: Callable[..., Validation]) -> None:
    """All weights are in place, but each layer reads those of the other."""
    model = onnx.load_model(package / MODEL, load_external_data=False)
    first, second = (node for node in model.graph.node if node.name.endswith("/attn/o_proj/BitLinear"))
    for place in (1, 2):
        first.input[place], second.input[place] = second.input[place], first.input[place]
    (package / MODEL).write_bytes(model.SerializeToString())
    found = check()
    assert failing(found) == []
    assert [one.holds for one in found.logits if one.way is Way.FLOATS] == [False, False]


def test_an_epsilon_that_is_another_is_found_and_located(package: Path, check: Callable[..., Validation]) -> None:
    model = onnx.load_model(package / MODEL, load_external_data=False)
    (node,) = (one for one in model.graph.node if one.name == "/model/layers.1/mlp/gate_up_proj/BitLinear")
    (epsilon,) = (one for one in node.attribute if one.name == "epsilon")
    epsilon.f = 0.05
    (package / MODEL).write_bytes(model.SerializeToString())
    found = check(layers=())
    assert failing(found) == []
    assert not found.holds
    assert [one.holds for one in found.logits if one.way is Way.FLOATS] == [False, False]
    first, second = found.layers
    assert first.floats is not None
    assert second.floats is not None
    assert first.floats < 1e-5 < 1e-4 < second.floats


def test_activations_of_other_bits_than_the_manifest_says(package: Path, check: Callable[..., Validation]) -> None:
    """The logits hardly move."""
    model = onnx.load_model(package / MODEL, load_external_data=False)
    (node,) = (one for one in model.graph.node if one.name == "/model/layers.1/mlp/gate_up_proj/BitLinear")
    (bits,) = (one for one in node.attribute if one.name == "activation_bits")
    bits.i = 16
    (package / MODEL).write_bytes(model.SerializeToString())
    found = check()
    assert not found.holds
    (wrong,) = (one for one in found.operators if not one.holds)
    assert wrong.node == node.name
    assert wrong.problem == "16-bit activations, the manifest says 8"


def test_a_value_that_the_numpy_operator_does_not_give(package: Path) -> None:
    nodes = linear_nodes(load_graph(package / MODEL))
    rng = np.random.default_rng(0)
    with BinaryFile(package / MODEL) as model, BinaryFile(package / MODEL_DATA) as data:
        graph = read_graph(model, data)
        inputs = [rng.standard_normal((1, 3, node.attributes.in_features), np.float32) for node in nodes]
        outputs = [np.zeros((1, 3, node.attributes.out_features), np.float32) for node in nodes]
        for found in check_operators(nodes, graph, list(zip(inputs, outputs, strict=True))):
            assert found.differing > found.size // 2
            assert not found.holds


def test_rotary_tables_that_are_others(package: Path, check: Callable[..., Validation]) -> None:
    def edit(values: bytearray) -> None:
        table = np.frombuffer(values, np.float32)
        table[16 * 3 : 16 * 4] *= np.float32(0.9)  # position 3

    change(package, "model.rotary.cos_cache", edit)
    found = check()
    assert failing(found) == []
    assert [one.tokens for one in found.logits if not one.holds and one.way is Way.FLOATS] == [20]


def test_a_second_graph_with_other_tensors(package: Path, check: Callable[..., Validation]) -> None:
    change(package, "model.layers.0.mlp.down_proj.scale", flip(3), (ENGINE,))
    found = check()
    assert failing(found) == ["model.layers.0.mlp.down_proj.scale"]
    assert "engine.onnx and model.onnx hold different tensors" in found.weights[-1].problem


def test_the_package_of_another_checkpoint(package: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", replace(TINY["biased_mqa"], seed=77))
    found = validate(package, other, FEW)
    assert not found.holds
    assert len(failing(found)) == len(found.weights)
    assert found.weights[0].first is not None
    (warning,) = found.warnings
    assert "sha256" in warning


def test_a_missing_tensor_is_named(package: Path, check: Callable[..., Validation]) -> None:
    model = onnx.load_model(package / MODEL, load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.name == "model.layers.0.mlp.down_proj.weight":
            tensor.name = "model.layers.0.mlp.down_proj.weights"
    (package / MODEL).write_bytes(model.SerializeToString())
    with pytest.raises(PackageError, match=r"model\.layers\.0\.mlp\.down_proj\.weight' is missing"):
        check()


def test_a_weight_that_is_not_finite(package: Path, check: Callable[..., Validation]) -> None:
    def edit(values: bytearray) -> None:
        values[:4] = np.float32("nan").tobytes()

    change(package, "lm_head.norm_weight", edit)
    found = check()
    (wrong,) = (one for one in found.weights if not one.holds)
    assert wrong.role == "norm"
    assert "not finite" in wrong.problem
    assert found.logits == ()
    assert not found.holds


@pytest.mark.parametrize("name", ["untied_gqa", "tied_mha", "bitnet"])
def test_other_sizes_are_refused(name: str, package: Path, tiny_checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(PackageError, match="the package was made from another model"):
        validate(package, tiny_checkpoint(name), FEW)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda layers: layers.pop(2), r"'layers.0.attn.k_proj' is not listed"),
        (lambda layers: layers[0].update(role="nonsense"), "is not listed|no matrix of the source"),
        (lambda layers: layers[0].update(role=7), "a layer has the role 7"),
        (lambda layers: layers[0].update(weights="int5"), "the weights 'int5'"),
        (lambda layers: layers[0].update(group_size=31), "group size is 31"),
        (lambda layers: layers[0].update(group_size="32"), "group_size '32'"),
        (lambda layers: layers[0].update(activation_bits=4), "activation_bits is 4"),
        (lambda layers: layers[0].update(activation_bits=True), "activation_bits True"),
    ],
)
def test_manifests_that_lie_are_refused(
    edit: Callable[[list[dict[str, object]]], None], message: str, package: Path, check: Callable[..., Validation]
) -> None:
    manifest = json.loads((package / MANIFEST).read_text())
    edit(manifest["layers"])
    (package / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(PackageError, match=message):
        check()


def test_a_manifest_that_names_another_precision(package: Path, check: Callable[..., Validation]) -> None:
    manifest = json.loads((package / MANIFEST).read_text())
    manifest["layers"][1]["weights"], manifest["layers"][1]["group_size"] = "int8", 0
    manifest["layers"][2]["weights"] = "float32"
    (package / MANIFEST).write_text(json.dumps(manifest))
    assert failing(check()) == [manifest["layers"][1]["role"], manifest["layers"][2]["role"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": ()}, "--tokens names no prompt"),
        ({"tokens": (0,)}, "--tokens holds 0: expected 1 to 512"),
        ({"tokens": (513,)}, "--tokens holds 513"),
        ({"layers": (2,)}, "--layers holds 2: expected 0 to 1"),
        ({"layers": (-1,)}, "--layers holds -1"),
        ({"prompt": ""}, "--prompt has 0 tokens"),
        ({"prompt": "x" * 600}, "--prompt has 600 tokens"),
    ],
)
def test_impossible_options_are_refused(
    options: dict[str, object], message: str, check: Callable[..., Validation]
) -> None:
    with pytest.raises(InputError, match=message):
        check(**options)


def test_a_shorter_context_and_a_text(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    convert(tiny_checkpoint("untied_gqa"), tmp_path / "package", context_length=48)
    steps: list[str] = []
    found = validate(
        tmp_path / "package",
        tiny_checkpoint("untied_gqa"),
        Options(prompt="Is it so?"),
        progress=lambda name, done, total: steps.append(name),
    )
    assert found.holds
    assert {one.tokens for one in found.logits} == {9}
    assert list(dict.fromkeys(steps)) == ["weights", "source", "reference, floats", "reference"]


def test_heads_that_are_padded_in_the_graph(tmp_path: Path) -> None:
    model = replace(TINY["biased_mqa"], config={**TINY["biased_mqa"].config, "head_dim": 20})
    source = write_checkpoint(tmp_path / "source", model)
    convert(source, tmp_path / "package")
    assert validate(tmp_path / "package", source, replace(FEW, layers=())).holds
    convert(tmp_path / "package", tmp_path / "again")
    assert validate(tmp_path / "again", source, FEW).holds


def test_a_package_as_the_source(original: Path, tmp_path: Path) -> None:
    """Its codes are those of the package that was made from it; as floats they are others."""
    convert(original, tmp_path / "again")
    found = validate(tmp_path / "again", original, FEW)
    assert found.holds
    assert found.warnings == ()
    convert(original, tmp_path / "floats", policy=POLICIES["float32"])
    assert validate(tmp_path / "floats", original, FEW).holds
    assert len(failing(validate(original, tmp_path / "floats", FEW))) == 0


def test_a_package_that_may_not_be_written(package: Path, check: Callable[..., Validation]) -> None:
    before = {path.name: path.read_bytes() for path in package.iterdir()}
    for path in (*package.iterdir(), package):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert check(layers=(1,)).holds
    finally:
        package.chmod(0o755)
    assert {path.name: path.read_bytes() for path in package.iterdir()} == before


@pytest.mark.parametrize("placement", NormPlacement)
@pytest.mark.parametrize("norm", Norm)
def test_hidden_states_are_found_in_every_graph(placement: NormPlacement, norm: Norm, tmp_path: Path) -> None:
    spec = SPECS[f"norms: {placement}, {norm}"]
    sizes = spec.num_hidden_layers, spec.num_key_value_heads, spec.head_dim, spec.vocab_size, spec.context_length
    info = PackageInfo(write(tmp_path, spec), 1, Architecture(*sizes), (), {}, False, None)
    ids, tensors = (3, 1, 4, 1, 5), RandomDecoder(spec)
    rule = PolicyRule(tensors, POLICIES["float32"])
    (expected,) = forward(spec, tensors, rule, [Prompt(ids)], layers=(0, 1))
    logits, states = PackageSession(info, Device(), [hidden_name(spec, layer) for layer in range(2)]).run(ids)
    np.testing.assert_allclose(logits, expected.logits, rtol=0, atol=1e-4)
    for layer, state in enumerate(states):
        np.testing.assert_allclose(state, expected.hidden[layer], rtol=0, atol=1e-4)


@pytest.mark.zoo
def test_smollm2_holds(zoo_model: Path, zoo_package: Path) -> None:
    found = validate(zoo_package, zoo_model, Options(tokens=(1, 24), layers=(0, 29)))
    assert failing(found) == []
    assert found.holds
    assert {check.value < 1e-3 for check in found.logits if check.way is Way.FLOATS} == {True}
