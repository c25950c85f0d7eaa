"""Linear layers: rounded weights, rounded inputs, and the norms that stand inside."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from bitnet_onnx.converters.onnx._linear_layers import module_path
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.training.graph._builder import Builder
from bitnet_onnx.training.graph._norms import Norms
from bitnet_onnx.training.graph._quantize import Quantizer
from bitnet_onnx.training.graph.options import GraphOptions
from bitnet_onnx.training.settings import BlockWeights, HeadWeights


class Linears:
    """Emits the linear layers of a decoder, and what looks up its embedding.

    Args:
        builder: where the nodes go.
        spec: what the decoder is.
        options: how it is rounded.
        parameters: weights and biases by role.
        norms: of the decoder.
    """

    def __init__(
        self,
        builder: Builder,
        spec: DecoderSpec,
        options: GraphOptions,
        parameters: dict[str, ir.Value],
        norms: Norms,
    ) -> None:
        self._builder = builder
        self._spec = spec
        self._options = options
        self._parameters = parameters
        self._norms = norms
        self._shapes = dict(spec.tensors())
        self._rounded: ir.Value | None = None
        self.quantizer = Quantizer(builder)

    def apply(self, roles: Sequence[str], x: ir.Value, layer: int) -> list[ir.Value]:
        """Linear layers on one input, which is rounded once.

        Args:
            roles: of the layers, no `.weight`.
            x: float `[tokens, K]`.
            layer: in whose group they are.

        Returns:
            float `[tokens, N]` each.
        """
        epsilon = self._spec.linear_norm_epsilon
        if epsilon is None or not roles[0].startswith("layers."):
            given = [self._input(f"{module_path(roles[0])}/input", x, layer)] * len(roles)
        else:
            given = []
            for role in roles:
                path = module_path(role)
                normed = self._norms.rms(f"{path}/norm", x, self._parameters[f"{role}.norm.weight"], epsilon)
                given.append(self._input(f"{path}/input", normed, layer))
        return [self._linear(role, part, layer) for role, part in zip(roles, given, strict=True)]

    def look_up(self, ids: ir.Value) -> ir.Value:
        """Rows of the embedding, float `[tokens, K]`, of the rounded one where it is rounded.

        Args:
            ids: int64 `[tokens]`.
        """
        build, path = self._builder, module_path("embed_tokens")
        table = self._parameters["embed_tokens.weight"]
        rounded = self._options.head is HeadWeights.INT8
        if rounded and self._spec.tie_word_embeddings:
            table = self._table("embed_tokens")
        rows = build.node(f"{path}/Gather", [table, ids], {"axis": 0})
        if rounded and not self._spec.tie_word_embeddings:
            # Each row has a step of its own: those that are looked up are enough.
            rows = self.quantizer.rows(f"{path}/rows", rows, self._head_strength())
        return rows

    def logits(self, x: ir.Value, scale: float) -> ir.Value:
        """The head, float `[tokens, vocabulary]`.

        Args:
            x: float `[tokens, K]`.
            scale: factor on the logits.
        """
        build, path = self._builder, module_path("lm_head")
        role = "embed_tokens" if self._spec.tie_word_embeddings else "lm_head"
        table = self._parameters[f"{role}.weight"]
        if self._options.head is HeadWeights.INT8:
            table = self._table(role)
            if self._options.activation_bits:
                x = self.quantizer.activations(f"{path}/input", x, self._head_strength())
        inputs = [x, table]
        if self._spec.head_bias:
            inputs.append(self._parameters["lm_head.bias"])
        if scale != 1:
            # On inputs and bias: they are smaller than logits.
            factor = build.scalar(scale)
            inputs[0] = build.node(f"{path}/scale/Mul", [x, factor])
            inputs[2:] = [build.node(f"{path}/bias/Mul", [bias, factor]) for bias in inputs[2:]]
        return build.node(f"{path}/Gemm", inputs, {"transB": 1})

    def _table(self, role: str) -> ir.Value:
        """The rounded rows of embedding or head; tied, they are rounded once."""
        if self._rounded is None:
            weight = self._parameters[f"{role}.weight"]
            self._rounded = self.quantizer.rows(f"{module_path(role)}/weight", weight, self._head_strength())
        return self._rounded

    def _linear(self, role: str, x: ir.Value, layer: int) -> ir.Value:
        path, weight = module_path(role), self._parameters[f"{role}.weight"]
        if self._options.weights is BlockWeights.TERNARY:
            size = math.prod(self._shapes[f"{role}.weight"])
            weight = self.quantizer.weight(f"{path}/weight", weight, size, self._strength(layer))
        inputs = [x, weight]
        if (bias := self._parameters.get(f"{role}.bias")) is not None:
            inputs.append(bias)
        return self._builder.node(f"{path}/Gemm", inputs, {"transB": 1})

    def _input(self, path: str, x: ir.Value, layer: int) -> ir.Value:
        if not self._options.activation_bits or self._options.weights is not BlockWeights.TERNARY:
            return x
        return self.quantizer.activations(path, x, self._strength(layer))

    def _strength(self, layer: int) -> ir.Value:
        groups = self._options.groups
        return self.quantizer.strength(groups[layer] if groups else 0)

    def _head_strength(self) -> ir.Value:
        return self.quantizer.strength(max(self._options.groups, default=0))
