"""The decoder graph at every mix of precisions, with and without the operator library."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from package_logits import PackageLogits
from safetensors.numpy import save_file
from tiny_models import TINY, prompts, tensors, write_checkpoint

from bitnet_onnx.converters import Fallback, convert
from bitnet_onnx.converters.families.llama import tensor_name
from bitnet_onnx.metrics import relative_error
from bitnet_onnx.policy import Policy, Precision, Weights

INT4, INT6 = Precision(Weights.INT4), Precision(Weights.INT6, 64)
INT8, TERNARY = Precision(Weights.INT8, 0), Precision(Weights.TERNARY)
FLOAT = Precision(Weights.FLOAT32)
HEAD, INT4_WIDE = Policy().head, Precision(Weights.INT4, activation_bits=16)

POLICIES = {
    "ternary": Policy(TERNARY, INT8),
    "int4": Policy(INT4, INT8),
    "int6": Policy(INT6, Precision(Weights.INT6)),
    "int8": Policy(INT8, INT4),
    "q, k and v apart": Policy(INT4, INT8, (("*.k_proj", INT8), ("*.v_proj", FLOAT))),
    "one layer ternary": Policy(INT4, INT8, (("layers.1.*", TERNARY),)),
    "gate and up apart": Policy(INT8, FLOAT, (("*.up_proj", INT6),)),
    "head float32": Policy(INT4, FLOAT),
    "blocks float32": Policy(FLOAT, INT8),
    "head and embedding apart": Policy(INT8, INT8, (("lm_head", INT4),)),
    "16-bit activations": Policy(Precision(Weights.INT4, 64, 16), Precision(Weights.INT6, 32, 16)),
    "q and up with 16-bit activations": Policy(INT4, HEAD, (("*.q_proj", INT4_WIDE), ("*.up_proj", INT4_WIDE))),
}
#: Every policy on one of the models, in turn.
EACH = [
    pytest.param(name, policy, id=f"{name}, {label}")
    for name, (label, policy) in zip(itertools.cycle(TINY), POLICIES.items(), strict=False)
]


def write_dequantized(directory: Path, name: str, policy: Policy) -> Path:
    """The same checkpoint with every matrix rounded as the policy says."""
    model = TINY[name]
    write_checkpoint(directory, model)
    weights = tensors(model)
    for role, precision in ((role, policy.precision(role)) for role in _matrices(name)):
        quantized = precision.quantize(weights[tensor_name(f"{role}.weight")])
        if quantized is not None:
            weights[tensor_name(f"{role}.weight")] = quantized.dequantize()
    save_file(weights, directory / "model.safetensors")
    return directory


def _matrices(name: str) -> list[str]:
    layers = [f"layers.{i}.{part}" for i in range(2) for part in ("attn", "mlp")]
    parts = {"attn": "qkvo", "mlp": ("gate", "up", "down")}
    roles = [f"{layer}.{one}_proj" for layer in layers for one in parts[layer.rsplit(".", 1)[1]]]
    return ["embed_tokens", *roles, *([] if TINY[name].config["tie_word_embeddings"] else ["lm_head"])]


@pytest.mark.parametrize(("name", "policy"), EACH)
def test_a_package_computes_what_its_weights_say(
    name: str, policy: Policy, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """Only int8 activations lie between a quantized package and float32 on the same weights."""
    convert(tiny_checkpoint(name), tmp_path / "package", policy=policy, fallback=Fallback.EXACT)
    convert(write_dequantized(tmp_path / "rounded", name, policy), tmp_path / "float", policy=Policy(FLOAT, FLOAT))
    ids = prompts(515)[1]
    run = PackageLogits(tmp_path / "package")
    logits, expected = run(ids), PackageLogits(tmp_path / "float")(ids)
    assert relative_error(expected, logits) < 0.03
    # Token by token: the cache holds what one call computes; float sums in another order may move a rounding.
    assert relative_error(logits, run(ids, 1)) < 0.03


@pytest.mark.parametrize("name", TINY)
def test_fast_bodies_are_near_exact_ones(name: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    for fallback in Fallback:
        convert(tiny_checkpoint(name), tmp_path / fallback, policy=POLICIES["int4"], fallback=fallback)
    ids = prompts(515)[2]
    fast, exact = (PackageLogits(tmp_path / fallback)(ids) for fallback in ("fast", "exact"))
    assert relative_error(exact, fast) < 0.03
    assert not np.array_equal(exact, fast)


@pytest.mark.parametrize(("name", "policy"), EACH)
def test_exact_bodies_agree_with_the_library(
    name: str, policy: Policy, tiny_checkpoint: Callable[[str], Path], tmp_path: Path, operator_library: Path
) -> None:
    convert(tiny_checkpoint(name), tmp_path / "package", policy=policy, fallback=Fallback.EXACT)
    without, with_library = (PackageLogits(tmp_path / "package", library) for library in (None, operator_library))
    ids = prompts(515)[1]
    # Linear layers agree to the bit on equal inputs; attention and activation are floats and may move a rounding.
    for chunk in (None, 1):
        expected, logits = without(ids, chunk), with_library(ids, chunk)
        assert relative_error(expected, logits) < 0.01
        np.testing.assert_array_equal(logits.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("weights", [TERNARY, INT4, INT8])
def test_fast_bodies_are_near_the_library(
    name: str, weights: Precision, tiny_checkpoint: Callable[[str], Path], tmp_path: Path, operator_library: Path
) -> None:
    convert(tiny_checkpoint(name), tmp_path / "package", policy=Policy(weights, INT8))
    ids = prompts(515)[2]
    fast, library = (PackageLogits(tmp_path / "package", path)(ids) for path in (None, operator_library))
    assert relative_error(library, fast) < 0.03


def graph_of(source: Path, package: Path, policy: Policy) -> onnx.ModelProto:
    convert(source, package, policy=policy)
    return onnx.load(package / "model.onnx", load_external_data=False)


def test_inputs_on_one_grid_share_a_node(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    model = graph_of(tiny_checkpoint("biased_mqa"), tmp_path / "package", POLICIES["int4"])
    names = [node.name for node in model.graph.node if node.op_type == "BitLinear"]
    layer = [f"attn/{name}" for name in ("qkv_proj", "o_proj")] + [
        f"mlp/{name}" for name in ("gate_up_proj", "down_proj")
    ]
    expected = [f"/model/layers.{index}/{name}/BitLinear" for index in (0, 1) for name in layer]
    assert names == [*expected, "/lm_head/BitLinear"]
    # Norms and biases are inside: nothing is left of either but the residual additions.
    assert Counter(node.op_type for node in model.graph.node)["Add"] == 4
    for node in model.graph.node:
        if node.op_type == "GroupQueryAttention":
            assert list(node.input[1:3]) == ["", ""]


def test_inputs_on_different_grids_do_not(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    model = graph_of(tiny_checkpoint("untied_gqa"), tmp_path / "package", POLICIES["q, k and v apart"])
    names = {node.name for node in model.graph.node}
    for name in ("q_proj/BitLinear", "k_proj/BitLinear", "v_proj/MatMul"):
        assert f"/model/layers.0/attn/{name}" in names
    (attention,) = (node for node in model.graph.node if node.name == "/model/layers.0/attn/GroupQueryAttention")
    assert all(attention.input[:3])


def test_inputs_with_other_activations_do_not_either(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    policy = POLICIES["q and up with 16-bit activations"]
    model = graph_of(tiny_checkpoint("untied_gqa"), tmp_path / "package", policy)
    bits = {}
    for node in model.graph.node:
        if node.op_type == "BitLinear":
            bits[node.name] = {item.name: item.i for item in node.attribute}["activation_bits"]
    layer = {"attn/q_proj": 16, "attn/k_proj": 8, "attn/v_proj": 8, "attn/o_proj": 8} | {
        "mlp/gate_proj": 8,
        "mlp/up_proj": 16,
        "mlp/down_proj": 8,
    }
    expected = {f"/model/layers.{index}/{name}/BitLinear": value for index in (0, 1) for name, value in layer.items()}
    assert bits == {**expected, "/lm_head/BitLinear": 16}


@pytest.mark.parametrize("name", ["tied_mha", "untied_gqa"])
@pytest.mark.parametrize("activation_bits", [0, 8, 16])
def test_the_head_takes_its_activations_from_the_policy(
    name: str, activation_bits: int, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    policy = Policy(INT4, Precision(Weights.INT8, 0, activation_bits))
    model = graph_of(tiny_checkpoint(name), tmp_path / "package", policy)
    (head,) = (node for node in model.graph.node if node.name == "/lm_head/BitLinear")
    assert {item.name: item.i for item in head.attribute}["activation_bits"] == activation_bits
    (table,) = (node for node in model.graph.node if node.op_type == "BitEmbedding")
    assert "activation_bits" not in {item.name for item in table.attribute}
    layers = json.loads((tmp_path / "package" / "bitnet_onnx.json").read_text())["layers"]
    recorded = {layer["role"]: layer["activation_bits"] for layer in layers}
    expected = (
        {"embed_tokens": activation_bits} if name == "tied_mha" else {"embed_tokens": 0, "lm_head": activation_bits}
    )
    assert {role: bits for role, bits in recorded.items() if "layers" not in role} == expected


def test_attention_and_activation_are_ours_with_stock_bodies(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """In both graphs, with one body for all layers."""
    for name, activation in (("untied_gqa", "silu"), ("bitnet", "relu2")):
        graph_of(tiny_checkpoint(name), tmp_path / name, POLICIES["int4"])
        for file in ("model.onnx", "engine.onnx"):
            model = onnx.load(tmp_path / name / file, load_external_data=False)
            assert {node.domain for node in model.graph.node} == {"", "bitnet"}
            for operator, count in (("GroupQueryAttention", 2), ("GatedActivation", 2)):
                nodes = [node for node in model.graph.node if node.op_type == operator]
                bodies = [function for function in model.functions if function.name == operator]
                assert (len(nodes), len(bodies)) == (count, 1)
                assert {(node.domain, node.overload) for node in nodes} == {("bitnet", bodies[0].overload)}
            (gated, _) = (node for node in model.graph.node if node.op_type == "GatedActivation")
            assert [attribute.s for attribute in gated.attribute] == [activation.encode()]
            assert len(gated.input) == 1


def test_gate_and_up_apart_are_two_inputs(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    model = graph_of(tiny_checkpoint("tied_mha"), tmp_path / "package", POLICIES["gate and up apart"])
    (gated, _) = (node for node in model.graph.node if node.op_type == "GatedActivation")
    producers = {output: node.name for node in model.graph.node for output in node.output}
    assert [producers[value] for value in gated.input] == [
        f"/model/layers.0/mlp/{name}_proj/BitLinear" for name in ("gate", "up")
    ]


def test_sub_norms_are_fused_into_quantized_layers(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    model = graph_of(tiny_checkpoint("bitnet"), tmp_path / "package", POLICIES["ternary"])
    norms = {node.name: node.input[3] for node in model.graph.node if node.op_type == "BitLinear"}
    assert norms["/model/layers.0/attn/o_proj/BitLinear"] == "model.layers.0.attn.o_proj.norm_weight"
    assert norms["/model/layers.1/mlp/down_proj/BitLinear"] == "model.layers.1.mlp.down_proj.norm_weight"
    sizes = {value.name: list(value.dims) for value in model.graph.initializer}
    assert sizes["model.layers.0.attn.o_proj.norm_weight"] == [64]
    assert sizes["model.layers.0.mlp.down_proj.norm_weight"] == [172]
    assert not [node for node in model.graph.node if node.op_type == "ReduceMean"]


def test_sub_norms_before_float_layers_are_nodes(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    model = graph_of(tiny_checkpoint("bitnet"), tmp_path / "package", POLICIES["blocks float32"])
    names = [node.name for node in model.graph.node if node.op_type == "ReduceMean"]
    parts = ("input_norm", "attn/sub_norm", "post_attention_norm", "mlp/sub_norm")
    assert names == [f"/model/layers.{index}/{part}/ReduceMean" for index in (0, 1) for part in parts]
    (matmul,) = (node for node in model.graph.node if node.name == "/model/layers.0/mlp/down_proj/MatMul")
    assert matmul.input[0] == "/model/layers.0/mlp/sub_norm/Mul/output_0"


def test_masters_of_a_ternary_model_become_ternary(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """Policy `auto`: the codes are those of absmean, and the scale is the mean magnitude."""
    conversion = convert(tiny_checkpoint("bitnet"), tmp_path / "package")
    assert conversion.trained_ternary
    blocks = [layer for layer in conversion.layers if layer.role != "embed_tokens"]
    assert len(blocks) == 14
    assert {layer.weights for layer in blocks} == {Weights.TERNARY}
    model = onnx.load(tmp_path / "package" / "model.onnx")
    (scale,) = (t for t in model.graph.initializer if t.name == "model.layers.1.mlp.down_proj.scale")
    weight = tensors(TINY["bitnet"])["model.layers.1.mlp.down_proj.weight"]
    assert onnx.numpy_helper.to_array(scale) == pytest.approx([np.abs(weight).mean()], rel=1e-6)
    assert not convert(tiny_checkpoint("tied_mha"), tmp_path / "other").trained_ternary


@pytest.mark.parametrize("head", [INT8, FLOAT])
def test_a_tied_head_is_stored_once(head: Precision, tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    for name, count in (("tied_mha", 1), ("untied_gqa", 2)):
        model = graph_of(tiny_checkpoint(name), tmp_path / name, Policy(INT4, head))
        stored = [t.name for t in model.graph.initializer if t.name in ("model.embed_tokens.weight", "lm_head.weight")]
        assert len(stored) == count


def test_the_layers_of_the_manifest_are_those_of_the_policy(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    policy = POLICIES["q, k and v apart"]
    convert(tiny_checkpoint("untied_gqa"), tmp_path / "package", policy=policy)
    layers = json.loads((tmp_path / "package" / "bitnet_onnx.json").read_text())["layers"]
    assert [layer["role"] for layer in layers] == _matrices("untied_gqa")
    for layer in layers:
        assert layer["weights"] == policy.precision(layer["role"]).weights
        assert (layer["relative_error"] == 0) == (layer["weights"] == "float32")


def test_ternary_weights_pass_through_unchanged(tmp_path: Path) -> None:
    """`auto` takes a ternary matrix as it is, with one scale for the tensor or for each row."""
    source = write_checkpoint(tmp_path / "source", TINY["untied_gqa"])
    weights = tensors(TINY["untied_gqa"])
    rng = np.random.default_rng(0)
    for key, value in weights.items():
        if "proj" in key:
            scale = rng.random((len(value), 1) if "mlp" in key else (1, 1), np.float32) / np.float32(16)
            weights[key] = (rng.integers(-1, 2, value.shape) * scale).astype(np.float32)
    save_file(weights, source / "model.safetensors")
    conversion = convert(source, tmp_path / "package")
    for layer in conversion.layers:
        expected = Weights.INT8 if layer.role in ("embed_tokens", "lm_head") else Weights.TERNARY
        assert layer.weights is expected
        assert expected is Weights.INT8 or layer.relative_error == 0
    convert(source, tmp_path / "float", policy=Policy(FLOAT, FLOAT))
    ids = prompts(515)[1]
    package, reference = (PackageLogits(tmp_path / name)(ids) for name in ("package", "float"))
    assert relative_error(reference, package) < 0.03
