"""The training graph of a decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from bitnet_onnx.converters.onnx._linear_layers import module_path
from bitnet_onnx.decoder import DecoderSpec, MlpActivation, NormPlacement, Residual
from bitnet_onnx.errors import InputError
from bitnet_onnx.training.graph._activation import activate
from bitnet_onnx.training.graph._attention import Attentions
from bitnet_onnx.training.graph._builder import Builder
from bitnet_onnx.training.graph._linears import Linears
from bitnet_onnx.training.graph._norms import Norms
from bitnet_onnx.training.graph._tokens import BATCH, SEQUENCE, Tokens
from bitnet_onnx.training.graph.losses import Losses, Student
from bitnet_onnx.training.graph.options import RELATION_STATES, GraphOptions, Term
from bitnet_onnx.training.settings import BlockWeights


@dataclass(frozen=True, slots=True)
class TrainingGraph:
    """A decoder and its losses.

    Attributes:
        model: opset 17; its inputs are the data's and the parameters. Operator `StopGradient` has to be replaced before
            it runs, see `stop_gradient`.
        parameters: shapes of the trained tensors by role, in the order of `DecoderSpec.tensors`.
        boundaries: values, float `[tokens, hidden]`, that enter each block and leave the last one.
    """

    model: ir.Model
    parameters: Mapping[str, tuple[int, ...]]
    boundaries: tuple[str, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs that are no parameters."""
        names = (value.name or "" for value in self.model.graph.inputs)
        return tuple(name for name in names if name not in self.parameters)


def training_graph(spec: DecoderSpec, options: GraphOptions) -> TrainingGraph:
    """Build the graph of a decoder.

    Its inputs, beside the parameters by role, and its outputs have the names of `options`; only those that something
    depends on are there. Matrices that lead from and to a narrower embedding count to the blocks, as in a conversion.

    Args:
        spec: what the decoder is.
        options: how it is rounded, and which losses there are.

    Raises:
        InputError: an option does not fit the decoder.
    """
    _check(spec, options)
    return _Graph(spec, options).run()


def trained_parameters(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that are trained, by role: all but the weights of norms that have none."""
    shapes = dict(spec.tensors())
    if spec.norm_affine:
        return shapes
    return {role: shape for role, shape in shapes.items() if not _is_plain_norm(role)}


def _is_plain_norm(role: str) -> bool:
    """Whether a tensor belongs to a norm; those inside of linear layers always have a weight."""
    module = role.rsplit(".", 1)[0]
    return module == "norm" or module.endswith("_norm")


class _Graph:
    """Builds one graph; the tokens of all sequences stand one below the other, float `[tokens, hidden]`."""

    def __init__(self, spec: DecoderSpec, options: GraphOptions) -> None:
        self._spec = spec
        self._options = options
        self._build = Builder()
        self._tokens = Tokens(self._build)
        self._shapes = trained_parameters(spec)
        self._parameters = {
            role: self._build.input(role, ir.DataType.FLOAT, shape) for role, shape in self._shapes.items()
        }
        self._norms = Norms(self._build, spec, self._parameters)
        self._linears = Linears(self._build, spec, options, self._parameters, self._norms)
        self._attentions = Attentions(self._build, self._tokens, spec, options, self._linears, self._norms)

    def run(self) -> TrainingGraph:
        spec, build = self._spec, self._build
        x = self._embed()
        boundaries = [x]
        for index in range(spec.num_hidden_layers):
            x = self._block(index, x)
            boundaries.append(x)
        logits = self._logits(x)
        states = self._attentions.states
        if self._options.terms:
            student = Student(logits, states, self._linears.quantizer.ternary)
            Losses(build, self._tokens, spec, self._options).emit(student)
        else:
            whole = self._tokens.reshape("/logits", logits, BATCH, SEQUENCE, spec.vocab_size)
            build.output(whole, "logits", [BATCH, SEQUENCE, spec.vocab_size])
            for name, state in zip(RELATION_STATES, states, strict=bool(states)):
                width = spec.attention_size if name == RELATION_STATES[0] else spec.key_value_size
                build.output(state, name, [BATCH, SEQUENCE, width])
        names = tuple(value.name or "" for value in boundaries)
        return TrainingGraph(build.model(), self._shapes, names)

    def _embed(self) -> ir.Value:
        spec, build, path = self._spec, self._build, "/model/embed_tokens"
        x = self._linears.look_up(build.reshape("/tokens/flat", self._tokens.ids, -1))
        if spec.embedding_scale != 1:
            x = build.node(f"{path}/scale/Mul", [x, build.scalar(spec.embedding_scale)])
        if spec.embedding_size:
            (x,) = self._linears.apply(["project_in"], x, 0)
        if spec.learned_positions is not None:
            path = "/model/embed_positions"
            table = self._parameters["embed_positions.weight"]
            rows = self._tokens.first_rows(path, table, spec.learned_positions.offset)
            x = self._tokens.reshape(f"{path}/sequences", x, BATCH, SEQUENCE, spec.hidden_size)
            x = build.reshape(path, build.node(f"{path}/sum/Add", [x, rows]), -1, spec.hidden_size)
        return x

    def _block(self, index: int, x: ir.Value) -> ir.Value:
        role = f"layers.{index}"
        first = self._normed_input(f"{role}.input_norm", x)
        attention = self._attention(index, first)
        match self._spec.residual:
            case Residual.SEQUENTIAL:
                x = self._add(f"{role}.attn", x, attention)
                return self._add(f"{role}.mlp", x, self._mlp(index, self._mlp_input(role, x)))
            case Residual.PARALLEL:
                mlp = self._mlp(index, self._mlp_input(role, x))
            case Residual.PARALLEL_SHARED_NORM:
                mlp = self._mlp(index, first)
        return self._add(f"{role}.mlp", self._add(f"{role}.attn", x, attention), mlp)

    def _mlp_input(self, role: str, x: ir.Value) -> ir.Value:
        return self._normed_input(f"{role}.post_attention_norm", x)

    def _normed_input(self, role: str, x: ir.Value) -> ir.Value:
        """What attention or the MLP reads."""
        reads_norm = self._spec.placement in {NormPlacement.INPUT, NormPlacement.BOTH}
        return self._norms.apply(role, x, self._spec.hidden_size) if reads_norm else x

    def _add(self, branch: str, x: ir.Value, y: ir.Value) -> ir.Value:
        """The residual stream after attention or the MLP."""
        spec, build, path = self._spec, self._build, module_path(branch)
        if spec.placement in {NormPlacement.OUTPUT, NormPlacement.BOTH}:
            y = self._norms.apply(f"{branch}.output_norm", y, spec.hidden_size)
        if spec.residual_scale != 1:
            y = build.node(f"{path}/residual/Mul", [y, build.scalar(spec.residual_scale)])
        x = build.node(f"{path}/residual/Add", [x, y])
        if spec.placement is NormPlacement.RESIDUAL:
            x = self._norms.apply(f"{branch}.residual_norm", x, spec.hidden_size)
        return x

    def _attention(self, index: int, x: ir.Value) -> ir.Value:
        spec, role = self._spec, f"layers.{index}.attn"
        attended = self._attentions.apply(index, x)
        if spec.attention_sub_norm:
            attended = self._norms.apply(f"{role}.sub_norm", attended, spec.attention_size)
        return self._linears.apply([f"{role}.o_proj"], attended, index)[0]

    def _mlp(self, index: int, x: ir.Value) -> ir.Value:
        spec, role = self._spec, f"layers.{index}.mlp"
        path, activation = module_path(role), MlpActivation(spec.activation)
        parts = self._linears.apply([f"{role}.{name}" for name in spec.mlp_inputs], x, index)
        inner = activate(self._build, f"{path}/act", parts[0], activation)
        if spec.gated:
            inner = self._build.node(f"{path}/gated/Mul", [inner, parts[1]])
        if spec.mlp_sub_norm:
            inner = self._norms.apply(f"{role}.sub_norm", inner, spec.intermediate_size)
        return self._linears.apply([f"{role}.down_proj"], inner, index)[0]

    def _logits(self, x: ir.Value) -> ir.Value:
        spec, build = self._spec, self._build
        if spec.has_final_norm:
            x = self._norms.apply("norm", x, spec.hidden_size)
        if spec.embedding_size:
            (x,) = self._linears.apply(["project_out"], x, spec.num_hidden_layers - 1)
        if not spec.logit_softcap:
            return self._linears.logits(x, spec.logit_scale)
        cap = spec.logit_softcap
        share = self._linears.logits(x, spec.logit_scale / cap)
        return build.node("/lm_head/softcap/Mul", [build.node("/lm_head/Tanh", [share]), build.scalar(cap)])


def _check(spec: DecoderSpec, options: GraphOptions) -> None:
    """Refuse options that do not fit the decoder."""
    layers = spec.num_hidden_layers
    if not 1 <= options.max_length <= spec.context_length:
        raise InputError(
            f"length is {options.max_length}: expected 1 to {spec.context_length}, the model's context length"
        )
    if options.activation_bits not in {0, 8}:
        raise InputError(f"activation_bits is {options.activation_bits}: expected 8, or 0 for float activations")
    if options.groups and (len(options.groups) != layers or min(options.groups) < 0):
        raise InputError(f"{len(options.groups)} groups of layers: expected one for each of {layers} layers, from 0 on")
    if not options.temperature > 0:
        raise InputError(f"temperature is {options.temperature}: it must be greater than 0")
    if options.relation_layer is not None and not 0 <= options.relation_layer < layers:
        raise InputError(f"relation_layer is {options.relation_layer}: the model has {layers} layers")
    if Term.GRID in options.terms and options.weights is not BlockWeights.TERNARY:
        raise InputError('grid has a weight, but the weights are floats: leave it out, or set weights = "ternary"')
    if Term.RELATION in options.terms:
        _check_relation(spec, options)


def _check_relation(spec: DecoderSpec, options: GraphOptions) -> None:
    if options.relation_layer is None:
        raise InputError("relation has a weight, but there is no relation_layer")
    for name, width in (("queries", spec.attention_size), ("keys", spec.key_value_size)):
        if options.relation_heads < 1 or width % options.relation_heads:
            raise InputError(
                f"relation_heads is {options.relation_heads}: it must divide the {width} features of the {name}"
            )
