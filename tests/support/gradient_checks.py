"""Graphs made of a few nodes, and their gradients against finite differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from bitnet_onnx.training.autodiff import differentiate
from bitnet_onnx.training.autodiff.session import differentiated_session


class Erf(OpRun):
    """In double: the reference's own is of single precision."""

    op_domain = ""

    def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
        return (np.vectorize(math.erf, otypes=[x.dtype])(x),)


class Gelu(OpRun):
    """In double, as Erf."""

    op_domain = ""

    def _run(self, x: np.ndarray, approximate: str = "none") -> tuple[np.ndarray]:
        if approximate == "tanh":
            return (0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),)
        return (0.5 * x * (1 + np.vectorize(math.erf, otypes=[x.dtype])(x / math.sqrt(2))),)


Arrays = Mapping[str, np.ndarray]
Shape = Sequence[int | str | None]


def graph_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Arrays,
    outputs: Sequence[str],
    *,
    constants: Arrays | None = None,
    shapes: Mapping[str, Shape] | None = None,
    opset: int = 20,
) -> onnx.ModelProto:
    """A model whose inputs have the arrays' types and shapes, or symbolic ones."""
    kinds = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in inputs.items()}
    places = {name: (shapes or {}).get(name, array.shape) for name, array in inputs.items()}
    graph = helper.make_graph(
        list(nodes),
        "checked",
        [helper.make_tensor_value_info(name, kinds[name], places[name]) for name in inputs],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("bitnet.training", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def with_loss(
    nodes: Sequence[onnx.NodeProto], inputs: Arrays, outputs: Sequence[str], constants: Arrays, opset: int
) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """The nodes and a `loss`: the sum of all elements of the outputs, weighted at random."""
    values = ReferenceEvaluator(graph_of(nodes, inputs, outputs, constants=constants, opset=opset)).run(
        None, dict(inputs)
    )
    rng = np.random.default_rng(0)
    weights = {f"weight.{n}": rng.normal(size=v.shape).astype(v.dtype) for n, v in zip(outputs, values, strict=True)}
    added: list[onnx.NodeProto] = []
    for name in outputs:
        added.append(helper.make_node("Mul", [name, f"weight.{name}"], [f"weighted.{name}"]))
        added.append(helper.make_node("ReduceSum", [f"weighted.{name}"], [f"sum.{name}"], keepdims=0))
    added.append(helper.make_node("Sum", [f"sum.{name}" for name in outputs], ["loss"]))
    return [*nodes, *added], {**constants, **weights}


def differentiated(model: onnx.ModelProto, parameters: Sequence[str], recompute: Sequence[str] = ()) -> onnx.ModelProto:
    """The model with gradients of `loss`, checked."""
    result = ir.to_proto(differentiate(ir.from_proto(model), "loss", parameters, recompute=recompute))
    onnx.checker.check_model(result)
    return result


def run(model: onnx.ModelProto, inputs: Arrays, threads: int = 1) -> dict[str, np.ndarray]:
    """Outputs by ONNX Runtime."""
    session = differentiated_session(model.SerializeToString(), threads)
    names = [output.name for output in session.get_outputs()]
    wanted = {value.name for value in session.get_inputs()}
    return dict(zip(names, session.run(names, {k: v for k, v in inputs.items() if k in wanted}), strict=True))


def finite_differences(model: onnx.ModelProto, inputs: Arrays, name: str, step: float = 1e-5) -> np.ndarray:
    """Central differences of `loss`."""
    evaluator = ReferenceEvaluator(model, new_ops=[Erf, Gelu])
    slopes = np.zeros(inputs[name].shape)
    for place in np.ndindex(slopes.shape):
        ends = []
        for sign in (1, -1):
            moved = inputs[name].copy()
            moved[place] += sign * step
            ends.append(evaluator.run(["loss"], {**inputs, name: moved})[0])
        slopes[place] = (np.sum(ends[0]) - np.sum(ends[1])) / (2 * step)
    return slopes


def check_gradients(
    nodes: Sequence[onnx.NodeProto],
    inputs: Arrays,
    outputs: Sequence[str],
    parameters: Sequence[str],
    *,
    constants: Arrays | None = None,
    shapes: Sequence[Mapping[str, Shape]] = ({},),
    opset: int = 20,
) -> None:
    """Gradients of float64 inputs, by the reference in double against finite differences and by ONNX Runtime in single.

    Args:
        nodes: of the graph.
        inputs: float64 or integers.
        outputs: that the loss is made of.
        parameters: inputs that are differentiated.
        constants: of the graph.
        shapes: of inputs, beside their static ones; each is tried.
        opset: of the graph.
    """
    nodes, constants = with_loss(nodes, inputs, outputs, constants or {}, opset)
    plain = graph_of(nodes, inputs, ["loss"], constants=constants, opset=opset)
    expected = {name: finite_differences(plain, inputs, name) for name in parameters}
    for shape in shapes:
        model = graph_of(nodes, inputs, ["loss"], constants=constants, shapes=shape, opset=opset)
        result = differentiated(model, parameters)
        found = dict(
            zip(
                [o.name for o in result.graph.output],
                ReferenceEvaluator(result, new_ops=[Erf, Gelu]).run(None, dict(inputs)),
                strict=True,
            )
        )
        single = {name: _single(array) for name, array in inputs.items()}
        less = {name: _single(array) for name, array in constants.items()}
        narrow = graph_of(nodes, single, ["loss"], constants=less, shapes=shape, opset=opset)
        fast = run(differentiated(narrow, parameters), single)
        for name, slopes in expected.items():
            gradient = found[f"gradient.{name}"]
            assert gradient.shape == inputs[name].shape
            assert gradient.dtype == inputs[name].dtype
            np.testing.assert_allclose(gradient, slopes, rtol=1e-5, atol=1e-7, err_msg=f"{name} with {shape}")
            assert fast[f"gradient.{name}"].shape == inputs[name].shape
            np.testing.assert_allclose(fast[f"gradient.{name}"], gradient, rtol=2e-4, atol=2e-5)


def _single(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == np.float64 else array


def stack(
    layers: int, width: int, batch: int, length: int
) -> tuple[onnx.ModelProto, dict[str, np.ndarray], list[str], list[str]]:
    """Blocks of a norm, a weight that is rounded behind a stop, an activation and a residual.

    Returns:
        the model, its inputs, names of the parameters, names of the values between blocks.
    """
    rng = np.random.default_rng(3)
    arrays = {"scale": rng.normal(size=width)}
    nodes = [helper.make_node("Mul", ["x", "scale"], ["b0"])]
    for i in range(layers):
        arrays |= {f"w{i}": rng.normal(size=(4 * width, width)), f"v{i}": rng.normal(size=(width, 4 * width)) / width}
        nodes += [
            helper.make_node("ReduceMean", [f"b{i}", "last"], [f"mean{i}"]),
            helper.make_node("Sub", [f"b{i}", f"mean{i}"], [f"n{i}"]),
            helper.make_node("Round", [f"w{i}"], [f"r{i}"]),
            helper.make_node("Sub", [f"r{i}", f"w{i}"], [f"d{i}"]),
            helper.make_node("StopGradient", [f"d{i}"], [f"s{i}"], domain="bitnet.training"),
            helper.make_node("Add", [f"w{i}", f"s{i}"], [f"q{i}"]),
            helper.make_node("Transpose", [f"q{i}"], [f"t{i}"], perm=[1, 0]),
            helper.make_node("MatMul", [f"n{i}", f"t{i}"], [f"h{i}"]),
            helper.make_node("Sigmoid", [f"h{i}"], [f"g{i}"]),
            helper.make_node("Mul", [f"h{i}", f"g{i}"], [f"a{i}"]),
            helper.make_node("Transpose", [f"v{i}"], [f"u{i}"], perm=[1, 0]),
            helper.make_node("MatMul", [f"a{i}", f"u{i}"], [f"o{i}"]),
            helper.make_node("Add", [f"b{i}", f"o{i}"], [f"b{i + 1}"]),
        ]
    nodes.append(helper.make_node("Mul", [f"b{layers}", f"b{layers}"], ["y"]))
    nodes.append(helper.make_node("ReduceSum", ["y"], ["loss"], keepdims=0))
    inputs = {name: _single(array) for name, array in {"x": rng.normal(size=(batch, length, width)), **arrays}.items()}
    shapes = {"x": ("b", "t", width)}
    model = graph_of(nodes, inputs, ["loss"], constants={"last": np.array([-1])}, shapes=shapes)
    return model, inputs, list(arrays), [f"b{i}" for i in range(layers + 1)]
