"""What the emitter of decoders asks of the operators that it writes with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import onnx_ir as ir

from bitnet_onnx.attention import AttentionAttributes
from bitnet_onnx.converters.onnx._activation import emit_activation
from bitnet_onnx.converters.onnx._emitter import Emitter, dotted
from bitnet_onnx.decoder import MlpActivation
from bitnet_onnx.quantized import FloatArray, QuantizedTensor


@final
class LayerInput:
    """What linear layers read: a value, and perhaps an RMSNorm on it that a layer's own node may take over.

    Args:
        form: writes the norm.
        value: before the norm.
        path: module path of the norm.
        norm: its weight, or None.
        epsilon: its epsilon.
    """

    def __init__(
        self, form: OperatorForm, value: ir.Value, path: str = "", norm: FloatArray | None = None, epsilon: float = 1e-5
    ) -> None:
        self._form = form
        self.value = value
        self._path = path
        self.norm = norm
        self.epsilon = epsilon
        self._normalized: ir.Value | None = None

    def normalized(self) -> ir.Value:
        """The value after the norm, as a value of the graph."""
        if self.norm is None:
            return self.value
        if self._normalized is None:
            self._normalized = self._form.rms_norm(self._path, self.value, self.norm, self.epsilon)
        return self._normalized


@dataclass(frozen=True, slots=True)
class CallInputs:
    """Inputs of the graph that tell how long things are.

    Attributes:
        ids: int64 `[batch, S]`.
        mask: int64 `[batch, total]`, ones for the tokens of a row after the call.
        past_key: a cache, float `[batch, kv_heads, length, head_dim]`.
    """

    ids: ir.Value
    mask: ir.Value
    past_key: ir.Value


class StoredMatrix(ABC):
    """A quantized matrix whose tensors are written; any number of nodes may stand on it."""

    @abstractmethod
    def linear(self, path: str, x: LayerInput, bias: FloatArray | None) -> ir.Value:
        """Add a linear layer, `[..., K]` to `[..., N]`.

        Args:
            path: module path.
            x: its input, with the norm before it.
            bias: float32 `[N]`, or None.
        """

    @abstractmethod
    def look_up(self, path: str, ids: ir.Value) -> ir.Value:
        """Add a look-up of rows as floats: int64 `[...]` to `[..., K]`."""


class OperatorForm(ABC):
    """The operators of a graph. What all forms write alike stands here.

    Args:
        emit: where nodes and initializers go.
    """

    def __init__(self, emit: Emitter) -> None:
        self.emit = emit

    @abstractmethod
    def matrix(self, path: str, tensor: QuantizedTensor, activation_bits: int | None = 8) -> StoredMatrix:
        """Store a matrix under a module path such as `/model/layers.0/attn/o_proj`.

        Args:
            path: of the module.
            tensor: its weights.
            activation_bits: what a linear layer on it does with its input; None where rows are only looked up.
        """

    @abstractmethod
    def read_lengths(self, call: CallInputs) -> None:
        """Add what attention has to know of the tokens of a call, once for all layers."""

    @abstractmethod
    def attention(
        self,
        path: str,
        qkv: Sequence[ir.Value],
        past: tuple[ir.Value, ir.Value],
        tables: Sequence[ir.Value],
        attributes: AttentionAttributes,
    ) -> Sequence[ir.Value]:
        """Add attention with its cache and return the output, the present keys and the present values.

        Args:
            path: module path.
            qkv: queries, keys and values, each in its own value or side by side in one.
            past: keys and values so far.
            tables: cosines and sines, or nothing where nothing is rotated.
            attributes: of the operator.
        """

    @abstractmethod
    def model(self, producer_version: str) -> ir.Model:
        """The finished model."""

    def gated(self, path: str, parts: Sequence[ir.Value], activation: MlpActivation) -> ir.Value:
        """Add `activation(gate) * up`; `parts` is one value that holds both, the gate first, or each of them."""
        if len(parts) == 1:
            parts = self.emit.nodes(f"{path}/gate_up/Split", parts, 2, {"axis": -1, "num_outputs": 2})
        gate = emit_activation(self.emit, f"{path}/act", parts[0], activation)
        return self.emit.node(f"{path}/Mul", [gate, parts[1]])

    def rms_norm(self, path: str, x: ir.Value, weight: FloatArray, epsilon: float) -> ir.Value:
        """RMSNorm in the plain operators that ONNX Runtime fuses into one."""
        emit = self.emit
        squares = emit.node(f"{path}/Pow", [x, emit.scalar("two", 2.0)])
        mean = emit.node(f"{path}/ReduceMean", [squares, emit.ints(-1)], {"keepdims": 1})
        shifted = emit.node(f"{path}/Add", [mean, emit.scalar(f"epsilon_{epsilon:g}", epsilon)])
        root = emit.node(f"{path}/Sqrt", [shifted])
        normalized = emit.node(f"{path}/Div", [x, root])
        return emit.node(f"{path}/Mul", [normalized, emit.constant(dotted(path, "weight"), weight)])

    def layer_norm(self, path: str, x: ir.Value, weight: FloatArray, bias: FloatArray, epsilon: float) -> ir.Value:
        """LayerNorm over the last axis."""
        emit = self.emit
        inputs = [x, emit.constant(dotted(path, "weight"), weight), emit.constant(dotted(path, "bias"), bias)]
        return emit.node(f"{path}/LayerNormalization", inputs, {"axis": -1, "epsilon": float(epsilon)})

    def float_linear(self, path: str, x: LayerInput, weight: FloatArray, bias: FloatArray | None) -> ir.Value:
        """Add a linear layer on floats `[N, K]`."""
        emit = self.emit
        y = emit.node(f"{path}/MatMul", [x.normalized(), emit.constant(dotted(path, "weight"), weight.T)])
        if bias is None:
            return y
        return emit.node(f"{path}/Add", [y, emit.constant(dotted(path, "bias"), bias)])
