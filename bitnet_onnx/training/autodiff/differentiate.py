"""Reverse-mode differentiation of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveUnusedNodesPass

from bitnet_onnx.errors import InputError, UnsupportedError

# The modules of rules enter them into the table.
from bitnet_onnx.training.autodiff import (  # noqa: F401
    _arithmetic,
    _elementwise,
    _indexing,
    _matrices,
    _norms,
    _reductions,
    _shapes,
    _softmax,
)
from bitnet_onnx.training.autodiff._dimensions import name_lengths
from bitnet_onnx.training.autodiff._emitter import dims, unsupported
from bitnet_onnx.training.autodiff._losses import CROSS_ENTROPY, lower_losses
from bitnet_onnx.training.autodiff._recompute import Segments
from bitnet_onnx.training.autodiff._rules import RULES, Rule
from bitnet_onnx.training.autodiff._tape import Tape
from bitnet_onnx.training.graph.options import STOP_GRADIENT, TRAINING_DOMAIN, gradient_output

#: ScatterND adds from 16 on, LayerNormalization is there from 17 on.
_LEAST_OPSET: Final = 17
#: Outputs that the rules read and a graph may leave out.
_OUTPUTS: Final = {CROSS_ENTROPY: 2, "LayerNormalization": 3}
_FLOATS: Final = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, None})


def differentiate(model: ir.Model, loss: str, parameters: Sequence[str], *, recompute: Sequence[str] = ()) -> ir.Model:
    """A graph that computes what another does, and a loss's gradients, in plain ONNX of the same opset.

    `bitnet.training::StopGradient` becomes Identity and SoftmaxCrossEntropyLoss what it is made of, so that any ONNX
    Runtime takes the result; with no parameters that is all.

    Args:
        model: is left as it is.
        loss: an output with one element.
        parameters: inputs or initializers of floats. Each has an output `gradient.<parameter>` of its shape after the
            model's own outputs, zeros where the loss does not depend on it.
        recompute: names of values, each depending on the one before it. What lies between two of them is computed
            again in the backward pass instead of kept.

    Raises:
        InputError: `loss`, a parameter or a value in `recompute` is not there, or is not of floats.
        UnsupportedError: a node on a path from a parameter to the loss cannot be differentiated.
    """
    result, stopped = _prepared(model)
    graph = result.graph
    trained = [_parameter(graph, name) for name in parameters]
    seed = next((value for value in graph.outputs if value.name == loss), None)
    if seed is None:
        raise InputError(f"cannot differentiate '{loss}': the graph has no output of that name")
    active = _active(graph, seed, trained, stopped)
    segments = Segments(graph, recompute, trained)
    tape = Tape(graph, active)
    if seed in active:
        tape.give(seed, tape.scalar(seed, 1.0), full=dims(seed) == ())
    for node, rule in reversed(_rules(graph, active)):
        if any(value in active and tape.has_gradient(value) for value in node.outputs):
            tape.scope = node.name or node.op_type
            segments.enter(tape, node)
            rule(tape, node)
    tape.replace, tape.scope = (lambda value: value), "parameters"
    gradients = [tape.gradient(value) if tape.has_gradient(value) else tape.zeros(value) for value in trained]
    _write(graph, tape, trained, gradients)
    lower_losses(graph)
    RemoveUnusedNodesPass()(result)
    return result


def _prepared(model: ir.Model) -> tuple[ir.Model, frozenset[str]]:
    """A copy with shapes and without functions, and the names of values that no gradient passes."""
    copy = ir.from_proto(ir.to_proto(model))
    if copy.functions:
        InlinePass()(copy)
    opset = copy.graph.opset_imports.get("", 0)
    if opset < _LEAST_OPSET:
        raise UnsupportedError(f"cannot differentiate a graph of opset {opset}: at least {_LEAST_OPSET} is needed")
    stopped: set[str] = set()
    for number, node in enumerate(copy.graph):
        node.name = node.name or f"{node.op_type}_{number}"
        if node.domain == TRAINING_DOMAIN and node.op_type == STOP_GRADIENT:
            node.domain, node.op_type = "", "Identity"
            stopped.update(output.name for output in node.outputs if output.name)
        least = _OUTPUTS.get(node.op_type, 0) if node.domain == "" else 0
        if len(node.outputs) < least:
            node.resize_outputs(least)
        for index, output in enumerate(node.outputs[:least]):
            output.name = output.name or f"{node.name}/output/{index}"
    copy.graph.opset_imports.pop(TRAINING_DOMAIN, None)
    inferred = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(copy), data_prop=True))
    name_lengths(inferred.graph)
    return inferred, frozenset(stopped)


def _parameter(graph: ir.Graph, name: str) -> ir.Value:
    value = next((each for each in graph.inputs if each.name == name), None) or graph.initializers.get(name)
    if value is None:
        raise InputError(f"cannot differentiate with respect to '{name}': the graph has no input of that name")
    if value.dtype not in _FLOATS:
        raise InputError(f"cannot differentiate with respect to '{name}': it is of type {value.dtype}, not of floats")
    return value


def _active(
    graph: ir.Graph, loss: ir.Value, parameters: Sequence[ir.Value], stopped: frozenset[str]
) -> frozenset[ir.Value]:
    """Values on a path of floats from a parameter to the loss."""
    varying = set(parameters)
    for node in graph:
        if any(value in varying for value in node.inputs if value is not None):
            varying.update(each for each in node.outputs if each.dtype in _FLOATS and each.name not in stopped)
    active: set[ir.Value] = set()
    stack = [loss]
    while stack:
        value = stack.pop()
        if value in varying and value not in active:
            active.add(value)
            producer = value.producer()
            if producer is not None:
                stack.extend(each for each in producer.inputs if each is not None)
    return frozenset(active)


def _rules(graph: ir.Graph, active: frozenset[ir.Value]) -> list[tuple[ir.Node, Rule]]:
    """Nodes that gradients pass, in their order."""
    found: list[tuple[ir.Node, Rule]] = []
    for node in graph:
        if any(value in active for value in node.outputs) and any(value in active for value in node.inputs):
            rule = RULES.get(node.op_type) if node.domain == "" else None
            if rule is None:
                raise unsupported(node, "the operator has no rule, and the loss depends on a parameter by it")
            found.append((node, rule))
    return found


def _write(graph: ir.Graph, tape: Tape, parameters: Sequence[ir.Value], gradients: Sequence[ir.Value]) -> None:
    """Append the backward pass, and name its outputs."""
    taken = set(graph.outputs)
    outputs: list[ir.Value] = []
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient in taken or gradient.producer() is None or gradient.is_graph_output():
            node = ir.node("Identity", [gradient], name=f"backward/{parameter.name}/Identity")
            tape.nodes.append(node)
            gradient = node.outputs[0]
        taken.add(gradient)
        gradient.name = gradient_output(str(parameter.name))
        gradient.type, gradient.shape = parameter.type, parameter.shape
        outputs.append(gradient)
    graph.extend(tape.nodes)
    graph.outputs.extend(outputs)
