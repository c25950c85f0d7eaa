"""Linear layers of a decoder: each matrix quantized and written once, and applied in every function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from bitnet_onnx.converters.coreml._activations import LayerInput
from bitnet_onnx.converters.coreml._graph import Graph, mil_name
from bitnet_onnx.converters.coreml._norms import Norms
from bitnet_onnx.converters.coreml._tools import Value
from bitnet_onnx.converters.coreml._weight_file import WeightFile
from bitnet_onnx.converters.coreml._weights import Factor, Matrix, dense, write_codes, write_floats
from bitnet_onnx.converters.coreml.options import TernaryStorage
from bitnet_onnx.converters.model import Tensors
from bitnet_onnx.converters.onnx._linears import LayerRecord, quantize
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.policy import Policy
from bitnet_onnx.quantization.statistics import Calibration

_EMBEDDING: Final = "embed_tokens"


class Matrices:
    """The matrices of a decoder, each quantized and written when it is first asked for.

    Args:
        tensors: of the source.
        weights: where they go.
        policy: the precision of each.
        ternary: how ternary ones are stored.
        record: called with what became of each matrix.
        calibration: what is known of the layers' inputs.
    """

    def __init__(
        self,
        tensors: Tensors,
        weights: WeightFile,
        policy: Policy,
        ternary: TernaryStorage,
        record: Callable[[LayerRecord], None],
        calibration: Calibration | None = None,
    ) -> None:
        self._tensors = tensors
        self._weights = weights
        self._policy = policy
        self._ternary = ternary
        self._record = record
        self._calibration = calibration
        self._written: dict[str, tuple[Matrix, int]] = {}

    def get(self, role: str, *, looked_up: bool = False) -> tuple[Matrix, int]:
        """A matrix, and the bits of its input; `looked_up` is one whose rows meet no activations."""
        if role not in self._written:
            precision = self._policy.precision(role)
            if looked_up:
                precision = replace(precision, activation_bits=0)
            statistics = None if self._calibration is None else self._calibration.of(role)
            tensor, record = quantize(self._tensors, role, precision, statistics)
            if tensor is None:
                matrix, bits = write_floats(self._weights, role, self._tensors), 0
            else:
                matrix = write_codes(self._weights, role, tensor, self._ternary, looked_up=looked_up)
                bits = precision.activation_bits
            self._record(replace(record, bits_per_weight=matrix.bits / (matrix.shape[0] * matrix.shape[1])))
            self._written[role] = matrix, bits
        return self._written[role]


class Linears:
    """Emits the linear layers of one function.

    Args:
        graph: where operations go.
        spec: what the decoder is.
        tensors: its biases.
        matrices: its matrices.
        norms: for norms inside of linear layers.
    """

    def __init__(self, graph: Graph, spec: DecoderSpec, tensors: Tensors, matrices: Matrices, norms: Norms) -> None:
        self._graph = graph
        self._spec = spec
        self._tensors = tensors
        self._matrices = matrices
        self._norms = norms

    def input(self, x: Value, name: str) -> LayerInput:
        """A float32 value `[1, query, K]` for layers to read; `name` begins the names of what is made of it."""
        return LayerInput(self._graph, x, name)

    def apply(self, roles: Sequence[str], x: LayerInput, *, bias: bool) -> list[Value]:
        """Linear layers on one input.

        Args:
            roles: of the layers.
            x: their input.
            bias: they have one.

        Returns:
            Float32 `[1, query, N]` for each.
        """
        epsilon = self._spec.linear_norm_epsilon
        if epsilon is None or not roles[0].startswith("layers."):
            return [self._product(role, role, x, bias=bias) for role in roles]
        results = []
        for role in roles:
            normed = self._norms.rms(f"{role}.norm", x.value, epsilon)
            given = self.input(normed, f"{mil_name(role)}_input")
            results.append(self._product(role, role, given, bias=bias))
        return results

    def logits(self, x: Value) -> Value:
        """The head, float32 `[1, query, vocabulary]`."""
        role = _EMBEDDING if self._spec.tie_word_embeddings else "lm_head"
        return self._product(role, "lm_head", self.input(x, "lm_head_input"), bias=self._spec.head_bias)

    def look_up(self, ids: Value) -> Value:
        """Rows of the embedding, float32 `[1, query, width]`."""
        graph, ops = self._graph, self._graph.ops
        matrix, _ = self._matrices.get(_EMBEDDING, looked_up=not self._spec.tie_word_embeddings)
        # A look-up in codes spares the system a copy of the whole table as floats.
        table = graph.stored(matrix.codes) if matrix.byte_unit else dense(graph, matrix)
        rows = graph.wide(ops.gather(x=table, indices=ids, axis=0), f"{_EMBEDDING}_rows")
        rows = graph.scaled(rows, matrix.byte_unit or 1.0)
        if matrix.factor_kind is Factor.NONE:
            return rows
        factor = graph.stored(matrix.factor)
        if matrix.factor_kind is Factor.ROWS:
            factor = ops.expand_dims(x=ops.gather(x=factor, indices=ids, axis=0), axes=[-1])
        return ops.mul(x=rows, y=factor)

    def _product(self, role: str, layer: str, x: LayerInput, *, bias: bool) -> Value:
        """The matrix `role` as the layer `layer`."""
        graph, ops, name = self._graph, self._graph.ops, mil_name(layer)
        matrix, bits = self._matrices.get(role)
        given, step = x.scaled(bits)
        rows = matrix.shape[0]
        zeros = graph.constant(f"zeros_{rows}", lambda: np.zeros(rows, np.float16), "fp16")
        y = ops.linear(x=given, weight=dense(graph, matrix), bias=zeros, name=f"{name}_sum")
        y = graph.wide(y)
        last = None if bias else name
        match matrix.factor_kind:
            case Factor.NONE:
                y = graph.named("mul", last, x=y, y=step)
            case Factor.ONE:
                y = graph.named("mul", last, x=y, y=ops.mul(x=step, y=graph.stored(matrix.factor)))
            case Factor.ROWS:
                y = graph.named("mul", last, x=ops.mul(x=y, y=step), y=graph.stored(matrix.factor))
        if not bias:
            return y
        offset = graph.constant(f"{name}_bias", lambda: self._tensors.read(f"{layer}.bias"))
        return ops.add(x=y, y=offset, name=name)
