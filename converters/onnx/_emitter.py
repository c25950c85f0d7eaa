"""A thin layer over onnx-ir: named nodes, initializers, and linear layers of any precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bitnet_onnx.attention import AttentionAttributes
from bitnet_onnx.bitlinear import BitLinearAttributes
from bitnet_onnx.converters.onnx import _attention_body, _gated_body, bodies
from bitnet_onnx.converters.onnx._attention_body import AttentionInputs
from bitnet_onnx.converters.onnx._data_file import DataFile
from bitnet_onnx.converters.onnx.bodies import MICROSOFT, OPSET, Fallback, Variant
from bitnet_onnx.package_format import OPERATOR_DOMAIN, OPERATOR_VERSION
from bitnet_onnx.packing import pack, pack_scale
from bitnet_onnx.quantized import FloatArray, QuantizedTensor

IR_VERSION = 10


@dataclass(frozen=True, slots=True)
class Matrix:
    """A stored matrix: its initializers, and the attributes that every node on it shares.

    Attributes:
        weight: packed panels.
        scale: value of one step.
        attributes: sizes, grid and bits of activations.
        per_tensor: `scale` is `[1]`.
    """

    weight: ir.Value
    scale: ir.Value
    attributes: BitLinearAttributes
    per_tensor: bool


class Emitter:
    """Builds one graph.

    Args:
        data: where initializers go.
        fallback: which function body the packages carry.
    """

    def __init__(self, data: DataFile, fallback: Fallback) -> None:
        self._data = data
        self._fallback = fallback
        self._functions: dict[tuple[str, str], ir.Function] = {}
        self._initializers: dict[str, ir.Value] = {}
        self._nodes: list[ir.Node] = []
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        """Declare a graph input."""
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self._inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> None:
        """Make a value a graph output under a name of its own."""
        value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
        self._outputs.append(value)

    def constant(self, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
        """An initializer; a name that exists already is given back as it is."""
        if name not in self._initializers:
            tensor = self._data.store(name, array)
            value = ir.Value(name=name, const_value=tensor)
            value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(array.shape)
            self._initializers[name] = value
        return self._initializers[name]

    def nodes(
        self,
        name: str,
        inputs: Sequence[ir.Value | None],
        outputs: int,
        attributes: Mapping[str, int | float | str | Sequence[int]] | None = None,
        *,
        domain: str = "",
        overload: str = "",
    ) -> Sequence[ir.Value]:
        """Add a node called `name`, whose last part is the operator, and return its outputs."""
        values = [ir.Value(name=f"{name}/output_{index}") for index in range(outputs)]
        node = ir.node(
            name.rsplit("/", 1)[1],
            inputs,
            attributes,
            domain=domain,
            overload=overload,
            outputs=values,
            name=name,
        )
        self._nodes.append(node)
        return node.outputs

    def node(
        self,
        name: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, int | float | str | Sequence[int]] | None = None,
        *,
        domain: str = "",
        overload: str = "",
    ) -> ir.Value:
        """Add a node with one output."""
        return self.nodes(name, inputs, 1, attributes, domain=domain, overload=overload)[0]

    def matrix(self, path: str, tensor: QuantizedTensor, activation_bits: int = 8) -> Matrix:
        """Pack and store a matrix under a module path such as `/model/layers.0/attn/o_proj`.

        Args:
            path: of the module.
            tensor: its weights.
            activation_bits: what a linear layer on it does with its input; a look-up has none.
        """
        weight = self.constant(dotted(path, "weight"), pack(tensor.raw, tensor.grid))
        rows, columns = tensor.shape
        scale = self.constant(dotted(path, "scale"), pack_scale(tensor.scale, tensor.grid))
        attributes = BitLinearAttributes(columns, rows, tensor.grid, activation_bits)
        return Matrix(weight, scale, attributes, tensor.scale.shape == (1,))

    def bitlinear(
        self,
        path: str,
        x: ir.Value,
        matrix: Matrix,
        *,
        norm: FloatArray | None = None,
        epsilon: float = 1e-5,
        bias: FloatArray | None = None,
    ) -> ir.Value:
        """Add a quantized linear layer, with the RMSNorm before it where `norm` is given."""
        at = dataclasses.replace(matrix.attributes, epsilon=epsilon)
        variant = Variant(at, norm is not None, bias is not None, self._fallback)
        self._declare("BitLinear", variant.overload, lambda: bodies.bitlinear_body(variant))
        inputs: list[ir.Value | None] = [x, matrix.weight, matrix.scale]
        if norm is not None or bias is not None:
            inputs.append(None if norm is None else self.constant(dotted(path, "norm_weight"), norm))
        if bias is not None:
            inputs.append(self.constant(dotted(path, "bias"), bias))
        attributes = {**_grid_attributes(at), "activation_bits": at.activation_bits, "epsilon": float(at.epsilon)}
        return self.node(f"{path}/BitLinear", inputs, attributes, domain=OPERATOR_DOMAIN, overload=variant.overload)

    def bit_embedding(self, path: str, ids: ir.Value, matrix: Matrix) -> ir.Value:
        """Add a look-up of rows of a packed matrix."""
        at = matrix.attributes
        overload = bodies.embedding_overload(at, matrix.per_tensor)
        self._declare("BitEmbedding", overload, lambda: bodies.bit_embedding_body(at, matrix.per_tensor))
        inputs = [ids, matrix.weight, matrix.scale]
        return self.node(
            f"{path}/BitEmbedding", inputs, _grid_attributes(at), domain=OPERATOR_DOMAIN, overload=overload
        )

    def attention(
        self, path: str, inputs: Sequence[ir.Value | None], attributes: AttentionAttributes
    ) -> Sequence[ir.Value]:
        """Add attention with its cache and return the output, the present keys and the present values.

        Args:
            path: module path.
            inputs: query, key, value, past key, past value, `seqlens_k`, total length, cosines and sines; query holds
                all three where key and value are None.
            attributes: of the node.
        """
        given = AttentionInputs(separate=inputs[1] is not None)
        overload = _attention_body.attention_overload(attributes, given)
        operator = _attention_body.OPERATOR
        self._declare(operator, overload, lambda: _attention_body.attention_body(attributes, given))
        outputs = self.nodes(
            f"{path}/{operator}",
            inputs,
            3,
            _attention_body.attention_node_attributes(attributes),
            domain=OPERATOR_DOMAIN,
            overload=overload,
        )
        # onnx knows no types behind ONNX Runtime's operators, and its checker wants that of the next layer's input.
        outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        return outputs

    def gated(self, path: str, parts: Sequence[ir.Value], activation: str) -> ir.Value:
        """Add `activation(gate) * up`; `parts` is one value that holds both, the gate first, or each of them."""
        separate = len(parts) > 1
        overload = _gated_body.gated_overload(activation, separate)
        operator = _gated_body.OPERATOR
        self._declare(operator, overload, lambda: _gated_body.gated_body(activation, separate))
        return self.node(
            f"{path}/{operator}", parts, {"activation": activation}, domain=OPERATOR_DOMAIN, overload=overload
        )

    def rms_norm(self, path: str, x: ir.Value, weight: FloatArray, epsilon: float) -> ir.Value:
        """RMSNorm in the plain operators that ONNX Runtime fuses into one."""
        squares = self.node(f"{path}/Pow", [x, self.scalar("two", 2.0)])
        mean = self.node(f"{path}/ReduceMean", [squares, self.ints(-1)], {"keepdims": 1})
        shifted = self.node(f"{path}/Add", [mean, self.scalar(f"epsilon_{epsilon:g}", epsilon)])
        root = self.node(f"{path}/Sqrt", [shifted])
        normalized = self.node(f"{path}/Div", [x, root])
        return self.node(f"{path}/Mul", [normalized, self.constant(dotted(path, "weight"), weight)])

    def layer_norm(self, path: str, x: ir.Value, weight: FloatArray, bias: FloatArray, epsilon: float) -> ir.Value:
        """LayerNorm over the last axis."""
        inputs = [x, self.constant(dotted(path, "weight"), weight), self.constant(dotted(path, "bias"), bias)]
        return self.node(f"{path}/LayerNormalization", inputs, {"axis": -1, "epsilon": float(epsilon)})

    def scalar(self, name: str, value: float) -> ir.Value:
        """A float constant shared by all that ask for the same name."""
        return self.constant(f"constant.{name}", np.array(value, np.float32))

    def ints(self, *values: int) -> ir.Value:
        """A shared int64 vector."""
        return self.constant("constant.ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def int_scalar(self, value: int) -> ir.Value:
        """A shared int64 scalar."""
        return self.constant(f"constant.int_{value}", np.array(value, np.int64))

    def model(self, producer_version: str) -> ir.Model:
        """The finished model."""
        opsets = {"": OPSET, MICROSOFT: 1, OPERATOR_DOMAIN: OPERATOR_VERSION}
        graph = ir.Graph(
            self._inputs,
            self._outputs,
            nodes=self._nodes,
            initializers=list(self._initializers.values()),
            opset_imports=opsets,
            name="decoder",
        )
        return ir.Model(
            graph,
            ir_version=IR_VERSION,
            producer_name="bitnet-onnx",
            producer_version=producer_version,
            functions=list(self._functions.values()),
        )

    def _declare(self, name: str, overload: str, build: Callable[[], ir.Function]) -> None:
        if (name, overload) not in self._functions:
            self._functions[name, overload] = build()


def dotted(path: str, name: str) -> str:
    """`/model/layers.0/attn/o_proj`, `weight` -> `model.layers.0.attn.o_proj.weight`."""
    return f"{path.strip('/').replace('/', '.')}.{name}"


def _grid_attributes(at: BitLinearAttributes) -> dict[str, int | float | str | Sequence[int]]:
    return {
        "in_features": at.in_features,
        "out_features": at.out_features,
        "bits": at.grid.bits,
        "zero_point": at.grid.zero_point,
        "group_size": at.grid.group_size,
    }
