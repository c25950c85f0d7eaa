"""The program of a decoder."""

from __future__ import annotations

from bitnet_onnx.converters.coreml._activation_functions import activate
from bitnet_onnx.converters.coreml._activations import LayerInput
from bitnet_onnx.converters.coreml._attention import Attentions
from bitnet_onnx.converters.coreml._graph import Graph, mil_name
from bitnet_onnx.converters.coreml._linears import Linears, Matrices
from bitnet_onnx.converters.coreml._norms import Norms
from bitnet_onnx.converters.coreml._positions import Positions
from bitnet_onnx.converters.coreml._tools import Value
from bitnet_onnx.converters.model import Tensors
from bitnet_onnx.decoder import DecoderSpec, MlpActivation, NormPlacement, Residual


class DecoderEmitter:
    """Emits a decoder into one function, layer by layer.

    What flows along the residual stream, through norms, activation functions and the quantization of activations is
    float32; matrices, keys, values and the products with them are float16.

    Args:
        spec: what the decoder is.
        tensors: its norms and biases.
        matrices: its matrices.
        graph: where operations go.
    """

    def __init__(self, spec: DecoderSpec, tensors: Tensors, matrices: Matrices, graph: Graph) -> None:
        self._spec = spec
        self._tensors = tensors
        self._graph = graph
        self._norms = Norms(graph, spec, tensors)
        self._linears = Linears(graph, spec, tensors, matrices, self._norms)

    def run(self, ids: Value, mask: Value, states: tuple[Value, Value], *, single: bool) -> Value:
        """Emit all of it.

        Args:
            ids: int32 `[1, query]`.
            mask: float16 `[1, 1, query, key]`.
            states: of keys and values.
            single: the query has one token.

        Returns:
            Logits, float16 `[1, query, vocabulary]`.
        """
        positions = Positions(self._graph, ids, mask, single=single)
        attentions = Attentions(self._graph, self._spec, self._linears, self._norms, positions, states)
        x = self._embed(ids, positions)
        for index in range(self._spec.num_hidden_layers):
            x = self._block(index, x, attentions)
        return self._logits(x)

    def _embed(self, ids: Value, positions: Positions) -> Value:
        spec, graph = self._spec, self._graph
        x = graph.scaled(self._linears.look_up(ids), spec.embedding_scale)
        if spec.embedding_size:
            x = self._linear("project_in", x, bias=False)
        learned = spec.learned_positions
        if learned is not None:
            # Only rows that a position can have, so that they are found without an offset.
            first, count = learned.offset, spec.context_length
            table = graph.constant(
                "embed_positions_weight",
                lambda: self._tensors.read_rows("embed_positions.weight", first, first + count),
                "fp16",
            )
            x = graph.ops.add(x=x, y=graph.wide(positions.rows(table)))
        return x

    def _block(self, index: int, x: Value, attentions: Attentions) -> Value:
        role = f"layers.{index}"
        first = self._input(f"{role}.input_norm", x)
        attention = self._attention(index, first, attentions)
        match self._spec.residual:
            case Residual.SEQUENTIAL:
                x = self._add(f"{role}.attn", x, attention)
                mlp = self._mlp(role, self._input(f"{role}.post_attention_norm", x))
                return self._add(f"{role}.mlp", x, mlp, f"{mil_name(role)}_output")
            case Residual.PARALLEL:
                mlp = self._mlp(role, self._input(f"{role}.post_attention_norm", x))
            case Residual.PARALLEL_SHARED_NORM:
                mlp = self._mlp(role, first)
        x = self._add(f"{role}.attn", x, attention)
        return self._add(f"{role}.mlp", x, mlp, f"{mil_name(role)}_output")

    def _input(self, role: str, x: Value) -> LayerInput:
        """What attention or the MLP reads."""
        reads_norm = self._spec.placement in {NormPlacement.INPUT, NormPlacement.BOTH}
        return self._linears.input(self._norms.apply(role, x) if reads_norm else x, f"{mil_name(role)}_input")

    def _linear(self, role: str, x: Value, *, bias: bool) -> Value:
        """A linear layer that reads alone."""
        return self._linears.apply([role], self._linears.input(x, f"{mil_name(role)}_input"), bias=bias)[0]

    def _add(self, branch: str, x: Value, y: Value, name: str | None = None) -> Value:
        """The residual stream after attention or the MLP."""
        spec, graph = self._spec, self._graph
        if spec.placement in {NormPlacement.OUTPUT, NormPlacement.BOTH}:
            y = self._norms.apply(f"{branch}.output_norm", y)
        y = graph.scaled(y, spec.residual_scale)
        if spec.placement is not NormPlacement.RESIDUAL:
            return graph.named("add", name, x=x, y=y)
        x = self._norms.apply(f"{branch}.residual_norm", graph.ops.add(x=x, y=y))
        return x if name is None else graph.ops.identity(x=x, name=name)

    def _attention(self, index: int, x: LayerInput, attentions: Attentions) -> Value:
        spec, role = self._spec, f"layers.{index}.attn"
        attended = attentions.apply(index, x)
        if spec.attention_sub_norm:
            attended = self._norms.apply(f"{role}.sub_norm", attended)
        return self._linear(f"{role}.o_proj", attended, bias=spec.output_bias)

    def _mlp(self, layer: str, x: LayerInput) -> Value:
        spec, role = self._spec, f"{layer}.mlp"
        parts = self._linears.apply([f"{role}.{part}" for part in spec.mlp_inputs], x, bias=spec.mlp_bias)
        inner = activate(self._graph, parts[0], MlpActivation(spec.activation))
        if spec.gated:
            inner = self._graph.ops.mul(x=inner, y=parts[1])
        if spec.mlp_sub_norm:
            inner = self._norms.apply(f"{role}.sub_norm", inner)
        return self._linear(f"{role}.down_proj", inner, bias=spec.mlp_bias)

    def _logits(self, x: Value) -> Value:
        spec, graph = self._spec, self._graph
        if spec.has_final_norm:
            x = self._norms.apply("norm", x)
        if spec.embedding_size:
            x = self._linear("project_out", x, bias=False)
        logits = graph.scaled(self._linears.logits(x), spec.logit_scale)
        if spec.logit_softcap:
            share = graph.scaled(logits, 1 / spec.logit_softcap)
            logits = graph.scaled(graph.ops.tanh(x=share), spec.logit_softcap)
        return graph.narrow(logits, "logits")
