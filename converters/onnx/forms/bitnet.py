"""Our own operators, with a function body for each so that ONNX Runtime executes them without our library."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from bitnet_onnx.attention import AttentionAttributes
from bitnet_onnx.bitlinear import BitLinearAttributes
from bitnet_onnx.converters.onnx import _attention_body, _gated_body, bodies
from bitnet_onnx.converters.onnx._attention_body import AttentionInputs
from bitnet_onnx.converters.onnx._emitter import Attributes, Emitter, dotted
from bitnet_onnx.converters.onnx.bodies import MICROSOFT, OPSET, Fallback, Variant
from bitnet_onnx.converters.onnx.forms._group_query import GroupQueryForm
from bitnet_onnx.converters.onnx.forms.form import LayerInput, StoredMatrix
from bitnet_onnx.decoder import MlpActivation
from bitnet_onnx.gated import Activation
from bitnet_onnx.package_format import OPERATOR_DOMAIN, OPERATOR_VERSION
from bitnet_onnx.packing import pack, pack_scale
from bitnet_onnx.quantized import FloatArray, QuantizedTensor

IR_VERSION: Final = 10


@dataclass(frozen=True, slots=True)
class PackedMatrix(StoredMatrix):
    """Packed panels.

    Attributes:
        form: writes nodes on them.
        weight: the panels.
        scale: value of one step.
        attributes: sizes, grid and bits of activations.
        per_tensor: `scale` is `[1]`.
    """

    form: BitnetForm
    weight: ir.Value
    scale: ir.Value
    attributes: BitLinearAttributes
    per_tensor: bool

    def linear(self, path: str, x: LayerInput, bias: FloatArray | None) -> ir.Value:
        """A `BitLinear`, which takes over the norm."""
        form, norm = self.form, x.norm
        at = dataclasses.replace(self.attributes, epsilon=x.epsilon)
        variant = Variant(at, norm is not None, bias is not None, form.fallback)
        form.declare("BitLinear", variant.overload, lambda: bodies.bitlinear_body(variant))
        inputs: list[ir.Value | None] = [x.value, self.weight, self.scale]
        if norm is not None or bias is not None:
            inputs.append(None if norm is None else form.emit.constant(dotted(path, "norm_weight"), norm))
        if bias is not None:
            inputs.append(form.emit.constant(dotted(path, "bias"), bias))
        attributes = {**_grid_attributes(at), "activation_bits": at.activation_bits, "epsilon": float(at.epsilon)}
        return form.node(f"{path}/BitLinear", inputs, attributes, variant.overload)

    def look_up(self, path: str, ids: ir.Value) -> ir.Value:
        """A `BitEmbedding`."""
        at, per_tensor = self.attributes, self.per_tensor
        overload = bodies.embedding_overload(at, per_tensor)
        self.form.declare("BitEmbedding", overload, lambda: bodies.bit_embedding_body(at, per_tensor))
        inputs = [ids, self.weight, self.scale]
        return self.form.node(f"{path}/BitEmbedding", inputs, _grid_attributes(at), overload)


class BitnetForm(GroupQueryForm):
    """Writes operators of the domain `bitnet`.

    Args:
        emit: where nodes and initializers go.
        fallback: which function body the packages carry.
    """

    def __init__(self, emit: Emitter, fallback: Fallback) -> None:
        super().__init__(emit)
        self.fallback = fallback
        self._functions: dict[tuple[str, str], ir.Function] = {}

    def matrix(self, path: str, tensor: QuantizedTensor, activation_bits: int | None = 8) -> PackedMatrix:
        """Pack a matrix into panels, which serve both kinds of nodes."""
        weight = self.emit.constant(dotted(path, "weight"), pack(tensor.raw, tensor.grid))
        rows, columns = tensor.shape
        scale = self.emit.constant(dotted(path, "scale"), pack_scale(tensor.scale, tensor.grid))
        attributes = BitLinearAttributes(columns, rows, tensor.grid, activation_bits or 0)
        return PackedMatrix(self, weight, scale, attributes, tensor.scale.shape == (1,))

    def attention(
        self,
        path: str,
        qkv: Sequence[ir.Value],
        past: tuple[ir.Value, ir.Value],
        tables: Sequence[ir.Value],
        attributes: AttentionAttributes,
    ) -> Sequence[ir.Value]:
        """Our `GroupQueryAttention`."""
        given = AttentionInputs(separate=len(qkv) == 3)
        overload = _attention_body.attention_overload(attributes, given)
        body = _attention_body.attention_body
        self.declare(_attention_body.OPERATOR, overload, lambda: body(attributes, given))
        return self.group_query(path, qkv, past, tables, attributes, domain=OPERATOR_DOMAIN, overload=overload)

    def gated(self, path: str, parts: Sequence[ir.Value], activation: MlpActivation) -> ir.Value:
        """Our `GatedActivation`, where it knows the activation."""
        name = str(activation)
        if name not in set(Activation):
            return super().gated(path, parts, activation)
        separate = len(parts) > 1
        overload = _gated_body.gated_overload(name, separate)
        operator = _gated_body.OPERATOR
        self.declare(operator, overload, lambda: _gated_body.gated_body(name, separate))
        return self.node(f"{path}/{operator}", parts, {"activation": name}, overload)

    def model(self, producer_version: str) -> ir.Model:
        """The finished model, with the bodies of all variants."""
        opsets = {"": OPSET, MICROSOFT: 1, OPERATOR_DOMAIN: OPERATOR_VERSION}
        return self.emit.model(producer_version, opsets, IR_VERSION, list(self._functions.values()))

    def node(self, name: str, inputs: Sequence[ir.Value | None], attributes: Attributes, overload: str) -> ir.Value:
        """Add a node of our domain."""
        return self.emit.nodes(name, inputs, 1, attributes, domain=OPERATOR_DOMAIN, overload=overload)[0]

    def declare(self, name: str, overload: str, build: Callable[[], ir.Function]) -> None:
        """Make sure that there is a function body."""
        if (name, overload) not in self._functions:
            self._functions[name, overload] = build()


def _grid_attributes(at: BitLinearAttributes) -> dict[str, int | float | str | Sequence[int]]:
    return {
        "in_features": at.in_features,
        "out_features": at.out_features,
        "bits": at.grid.bits,
        "zero_point": at.grid.zero_point,
        "group_size": at.grid.group_size,
    }
