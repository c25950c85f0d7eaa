"""What training graphs are made of: names, shapes, operators, and what stops gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from random_decoders import BASE, SPECS
from training_graphs import NAMES, GraphRun, scalars, teacher, tokens

from bitnet_onnx.decoder import Norm, NormPlacement
from bitnet_onnx.errors import InputError
from bitnet_onnx.training.graph.decoder import TrainingGraph, trained_parameters, training_graph
from bitnet_onnx.training.graph.options import (
    INPUT_IDS,
    LOSS,
    STOP_GRADIENT,
    STRENGTH,
    TRAINING_DOMAIN,
    GraphOptions,
    Term,
    loss_output,
)
from bitnet_onnx.training.graph.stop_gradient import as_identity, as_sequence
from bitnet_onnx.training.settings import BlockWeights, HeadWeights

ALL = GraphOptions(
    24, head=HeadWeights.INT8, terms=frozenset(Term), temperature=2.0, relation_layer=1, relation_heads=2
)

#: Operators whose gradients onnxruntime-training 1.19.2 has, as far as the graphs need them.
WITH_GRADIENT = {
    "Add", "Concat", "Div", "Erf", "Gather", "Gemm", "LayerNormalization", "LogSoftmax", "MatMul", "Mul", "Pow",
    "ReduceMean", "ReduceSum", "Relu", "Reshape", "Sigmoid", "Slice", "Softmax", "SoftmaxCrossEntropyLoss", "Split",
    "Sqrt", "Sub", "Tanh", "Transpose",
}  # fmt: skip
#: Outputs that an operator has to declare for its gradient.
OUTPUTS = {"LayerNormalization": 3, "SoftmaxCrossEntropyLoss": 2}


def gradient_path(graph: TrainingGraph) -> tuple[list[ir.Node], set[str]]:
    """Nodes between a parameter and the loss, with nothing that stops gradients between; and the parameters reached."""
    depends: set[ir.Value] = {value for value in graph.model.graph.inputs if value.name in graph.parameters}
    forward = []
    for node in graph.model.graph:
        if node.op_type != STOP_GRADIENT and depends & set(node.inputs):
            depends.update(node.outputs)
            forward.append(node)
    wanted = {value for value in graph.model.graph.outputs if value.name == LOSS}
    path = []
    for node in reversed(forward):
        if wanted & set(node.outputs):
            wanted.update(value for value in node.inputs if value is not None)
            path.append(node)
    return path, {value.name or "" for value in wanted} & set(graph.parameters)


@pytest.mark.parametrize("name", NAMES)
def test_what_needs_a_gradient_has_one(name: str) -> None:
    spec = SPECS[name]
    heads = 2 if spec.num_key_value_heads % 2 == 0 else 1
    graph = training_graph(spec, replace(ALL, relation_heads=heads))
    path, reached = gradient_path(graph)
    assert {node.op_type for node in path} <= WITH_GRADIENT
    assert reached == set(graph.parameters)
    for node in path:
        if node.op_type == "Split":
            # With an output that nothing reads, its gradient is silently wrong.
            assert all(value.uses() for value in node.outputs)
        assert len(node.outputs) == OUTPUTS.get(node.op_type, len(node.outputs))
    onnx.checker.check_model(ir.to_proto(as_sequence(graph.model)), full_check=True)


def test_the_path_is_what_it_claims_to_be() -> None:
    """A rounded weight reaches the loss past its rounding, not through it."""
    path, _ = gradient_path(training_graph(BASE, ALL))
    names = {node.name for node in path}
    assert "/model/layers.0/mlp/up_proj/weight/Add" in names
    assert not any("Clip" in (name or "") or "ReduceMax" in (name or "") for name in names)


def test_parameters_are_inputs_by_role() -> None:
    for name in ("base", "projected embedding, tied, norms after the sum", "norms in linear layers with biases"):
        spec = SPECS[name]
        graph = training_graph(spec, ALL)
        assert list(graph.parameters.items()) == list(spec.tensors())
        shapes = {value.name: tuple(value.shape or ()) for value in graph.model.graph.inputs}
        assert {role: shapes[role] for role in graph.parameters} == graph.parameters
        assert shapes[INPUT_IDS] == ("batch_size", "sequence_length")
        assert not set(graph.inputs) & set(graph.parameters)


def test_norms_without_weights_are_not_trained() -> None:
    spec = replace(SPECS["layer norms"], norm_affine=False, placement=NormPlacement.BOTH)
    for kind in Norm:
        plain = replace(spec, norm=kind, linear_norm_epsilon=1e-5)
        left_out = set(dict(plain.tensors())) - set(trained_parameters(plain))
        assert {role.split(".")[-2] for role in left_out} == {
            "norm", "input_norm", "output_norm", "post_attention_norm",
        }  # fmt: skip
        assert "layers.1.attn.o_proj.norm.weight" in trained_parameters(plain)
        run, whole = GraphRun(plain, GraphOptions(8)), GraphRun(replace(plain, norm_affine=True), GraphOptions(8))
        for role in left_out:
            whole.parameters[role] = np.full_like(whole.parameters[role], role.endswith(".weight"))
        data = tokens(plain, 1, 8)
        inputs = data | scalars(data, 0.5)
        np.testing.assert_allclose(run(inputs)[LOSS], whole(inputs)[LOSS], rtol=1e-6)


def test_boundaries_part_the_blocks() -> None:
    spec = SPECS["like gemma 2"]
    graph = training_graph(spec, ALL)
    assert len(graph.boundaries) == spec.num_hidden_layers + 1
    producers = {value.name: node for node in graph.model.graph for value in node.outputs}
    assert all(boundary in producers for boundary in graph.boundaries)
    # From what leaves a block, no way leads back past what enters it but by masks and rotations.
    for first, last in zip(graph.boundaries, graph.boundaries[1:], strict=False):
        seen, waiting = {first}, [last]
        while waiting:
            name = waiting.pop()
            if name in seen or name not in producers:
                continue
            seen.add(name)
            waiting.extend(value.name or "" for value in producers[name].inputs if value is not None)
        assert not any("embed_tokens" in name for name in seen - {first})


def test_a_teachers_graph() -> None:
    options = GraphOptions(24, weights=BlockWeights.FLOAT, activation_bits=0, terms=frozenset(), relation_layer=1)
    graph = training_graph(BASE, options)
    assert graph.inputs == (INPUT_IDS,)
    shapes = {value.name: tuple(value.shape or ()) for value in graph.model.graph.outputs}
    lead = ("batch_size", "sequence_length")
    assert shapes == {"logits": (*lead, 211), "query": (*lead, 64), "key": (*lead, 32), "value": (*lead, 32)}
    found = GraphRun(BASE, options)(tokens(BASE, 2, 7))
    assert {name: value.shape for name, value in found.items()} == {
        name: (2, 7, shape[-1]) for name, shape in shapes.items()
    }


def test_what_stops_gradients_is_replaced() -> None:
    graph = training_graph(BASE, ALL)
    stops = [node for node in graph.model.graph if node.op_type == STOP_GRADIENT]
    assert len(stops) > 14
    data = tokens(BASE, 2, 9)
    inputs = data | scalars(data, 0.6) | teacher(BASE, 2, 9, {"query": 32, "key": 32, "value": 32})
    found = []
    for model, operator, count in (
        (as_identity(graph.model), "Identity", len(stops)),
        (as_sequence(graph.model), "SequenceAt", len(stops)),
    ):
        assert sum(node.op_type == operator for node in model.graph) == count
        assert not any(node.domain == TRAINING_DOMAIN for node in model.graph)
        assert TRAINING_DOMAIN not in model.graph.opset_imports
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        found.append(GraphRun(BASE, ALL, model)(inputs))
    assert any(node.op_type == STOP_GRADIENT for node in graph.model.graph)
    for name in (LOSS, *map(loss_output, Term)):
        assert found[0][name].shape == ()
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (replace(ALL, max_length=161), "length is 161: expected 1 to 160"),
        (replace(ALL, max_length=0), "length is 0"),
        (replace(ALL, activation_bits=4), "activation_bits is 4: expected 8, or 0"),
        (replace(ALL, groups=(0,)), "1 groups of layers: expected one for each of 2"),
        (replace(ALL, groups=(0, -1)), "2 groups of layers: .* from 0 on"),
        (replace(ALL, temperature=0.0), "temperature is 0.0: it must be greater than 0"),
        (replace(ALL, temperature=float("nan")), "temperature is nan"),
        (replace(ALL, relation_layer=2), "relation_layer is 2: the model has 2 layers"),
        (replace(ALL, relation_layer=None), "relation has a weight, but there is no relation_layer"),
        (replace(ALL, relation_heads=0), "relation_heads is 0: it must divide the 64 features of the queries"),
        (replace(ALL, relation_heads=64), "relation_heads is 64: it must divide the 32 features of the keys"),
        (replace(ALL, weights=BlockWeights.FLOAT), "grid has a weight, but the weights are floats"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: GraphOptions, message: str) -> None:
    with pytest.raises(InputError, match=message):
        training_graph(BASE, options)


def test_strength_is_asked_for_where_something_is_rounded() -> None:
    for weights, head, asked in (
        (BlockWeights.TERNARY, HeadWeights.FLOAT, True),
        (BlockWeights.FLOAT, HeadWeights.INT8, True),
        (BlockWeights.FLOAT, HeadWeights.FLOAT, False),
    ):
        graph = training_graph(BASE, GraphOptions(8, weights=weights, head=head))
        assert (STRENGTH in graph.inputs) == asked
