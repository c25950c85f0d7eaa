"""The terms of the loss.

Each is a sum over the tokens of this micro-batch, divided by a count of the whole step, so that terms of micro-batches
and of workers add up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.training.graph._builder import Builder
from bitnet_onnx.training.graph._quantize import Rounded
from bitnet_onnx.training.graph._tokens import BATCH, SEQUENCE, Tokens
from bitnet_onnx.training.graph.options import (
    LABELS,
    LOSS,
    NORMALIZER,
    POSITIONS,
    RELATION_STATES,
    TEACHER_LOGITS,
    GraphOptions,
    Term,
    loss_output,
    teacher_state,
    weight_input,
)
from bitnet_onnx.training.settings import IGNORED

_LAST: Final = (-1,)


@dataclass(frozen=True, slots=True)
class Student:
    """What the losses compare.

    Attributes:
        logits: float `[tokens, vocabulary]`.
        states: queries, keys and values of the relation layer, float `[B, T, width]` each.
        ternary: matrices that are drawn to the grid.
    """

    logits: ir.Value
    states: Sequence[ir.Value]
    ternary: Sequence[Rounded]


class Losses:
    """Emits the terms and their weighted sum.

    Args:
        builder: where the nodes go.
        tokens: of the micro-batch.
        spec: sizes.
        options: which terms.
    """

    def __init__(self, builder: Builder, tokens: Tokens, spec: DecoderSpec, options: GraphOptions) -> None:
        self._builder = builder
        self._tokens = tokens
        self._spec = spec
        self._options = options
        self._flat_labels: ir.Value | None = None

    def emit(self, student: Student) -> None:
        """All terms of the options, in the order of `Term`."""
        build, weighted = self._builder, []
        for term in Term:
            if term in self._options.terms:
                value = self._term(term, student)
                weight = build.input(weight_input(term), ir.DataType.FLOAT, [])
                weighted.append(build.node(f"/loss/{term}/weight/Mul", [value, weight]))
                build.output(value, loss_output(term), [])
        build.output(self._total("/loss", weighted), LOSS, [])

    def _term(self, term: Term, student: Student) -> ir.Value:
        match term:
            case Term.CROSS_ENTROPY:
                return self._cross_entropy(student.logits)
            case Term.DISTILLATION:
                return self._distillation(student.logits)
            case Term.RELATION:
                return self._relation(student.states)
            case Term.GRID:
                return self._grid(student.ternary)

    def _cross_entropy(self, logits: ir.Value) -> ir.Value:
        """Cross entropy of the labelled tokens."""
        build, path = self._builder, "/loss/cross_entropy"
        losses = build.nodes(
            f"{path}/SoftmaxCrossEntropyLoss",
            [logits, self._labels()],
            2,
            {"reduction": "sum", "ignore_index": IGNORED},
        )
        return build.node(f"{path}/Div", [losses[0], self._count(NORMALIZER)])

    def _distillation(self, logits: ir.Value) -> ir.Value:
        """`T^2 KL(teacher || student)` of logits divided by `T`, over the labelled tokens.

        Formula: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015.
        """
        build, path, temperature = self._builder, "/loss/distillation", self._options.temperature
        vocabulary = self._spec.vocab_size
        given = build.input(TEACHER_LOGITS, ir.DataType.FLOAT, [BATCH, SEQUENCE, vocabulary])
        teacher = build.reshape(f"{path}/teacher", given, -1, vocabulary)
        if temperature != 1:
            inverse = build.scalar(1 / temperature)
            teacher = build.node(f"{path}/teacher/Mul", [teacher, inverse])
            logits = build.node(f"{path}/student/Mul", [logits, inverse])
        per_token = self._divergence(path, teacher, logits)
        ignored = build.node(f"{path}/Equal", [self._labels(), build.int_scalar(IGNORED)])
        counted = build.node(f"{path}/Cast", [build.node(f"{path}/Not", [ignored])], {"to": int(ir.DataType.FLOAT)})
        total = self._sum(f"{path}/total", build.node(f"{path}/counted/Mul", [per_token, counted]), _LAST)
        scaled = build.node(f"{path}/square/Mul", [total, build.scalar(temperature**2)])
        return build.node(f"{path}/Div", [scaled, self._count(NORMALIZER)])

    def _relation(self, states: Sequence[ir.Value]) -> ir.Value:
        """KL(teacher || student) of how tokens relate: `softmax(x x^T / sqrt(d))` over the tokens before each.

        The mean over queries, keys and values and over the relation heads, whose `d` features each is cut into; the
        teacher's width may be another. Formula: Wang et al., "MiniLMv2: Multi-Head Self-Attention Relation Distillation
        for Compressing Pretrained Transformers", 2021.
        """
        build, path, spec, heads = self._builder, "/loss/relation", self._spec, self._options.relation_heads
        parts = []
        for name, state in zip(RELATION_STATES, states, strict=True):
            width = spec.attention_size if name == RELATION_STATES[0] else spec.key_value_size
            root = build.scalar(1 / math.sqrt(width // heads))
            student = self._relations(f"{path}/{name}/student", state, root)
            shape = [BATCH, SEQUENCE, f"teacher_{name}_width"]
            given = build.input(teacher_state(name), ir.DataType.FLOAT, shape)
            teacher = self._relations(f"{path}/{name}/teacher", given, self._inverse_root(f"{path}/{name}", given))
            parts.append(self._sum(f"{path}/{name}", self._divergence(f"{path}/{name}", teacher, student), (0, 1, 2)))
        mean = build.node(f"{path}/Mul", [self._total(path, parts), build.scalar(1 / (len(RELATION_STATES) * heads))])
        return build.node(f"{path}/Div", [mean, self._count(POSITIONS)])

    def _relations(self, path: str, state: ir.Value, inverse_root: ir.Value) -> ir.Value:
        """Scores `[B, heads, T, T]` before their softmax."""
        build = self._builder
        cut = build.reshape(path, state, 0, 0, self._options.relation_heads, -1)
        features = build.node(f"{path}/Transpose", [cut], {"perm": [0, 2, 1, 3]})
        columns = build.node(f"{path}/columns/Transpose", [cut], {"perm": [0, 2, 3, 1]})
        scaled = build.node(f"{path}/Mul", [features, inverse_root])
        scores = build.node(f"{path}/MatMul", [scaled, columns])
        return build.node(f"{path}/mask/Add", [scores, self._tokens.mask(0)])

    def _inverse_root(self, path: str, teacher: ir.Value) -> ir.Value:
        """`1 / sqrt(d)` of the teacher's relation heads, float `[1]`."""
        build = self._builder
        shape = build.node(f"{path}/width/Shape", [teacher])
        width = build.node(f"{path}/width/Slice", [shape, build.ints(2), build.ints(3)])
        wide = build.node(f"{path}/width/Cast", [width], {"to": int(ir.DataType.FLOAT)})
        features = build.node(f"{path}/width/Mul", [wide, build.scalar(1 / self._options.relation_heads)])
        return build.node(f"{path}/width/Reciprocal", [build.node(f"{path}/width/Sqrt", [features])])

    def _divergence(self, path: str, teacher: ir.Value, student: ir.Value) -> ir.Value:
        """KL(teacher || student) over the last axis of two tensors of logits.

        The teacher's own part is summed apart: it needs no gradient, and what does is one product.
        """
        build, last = self._builder, {"axis": -1}
        expected = build.node(f"{path}/teacher/LogSoftmax", [teacher], last)
        share = build.node(f"{path}/teacher/Exp", [expected])
        found = build.node(f"{path}/student/LogSoftmax", [student], last)
        own = self._sum(f"{path}/own", build.node(f"{path}/own/Mul", [share, expected]), _LAST)
        crossed = self._sum(f"{path}/crossed", build.node(f"{path}/crossed/Mul", [share, found]), _LAST)
        return build.node(f"{path}/Sub", [own, crossed])

    def _grid(self, ternary: Sequence[Rounded]) -> ir.Value:
        """The mean of `(w / m - q)^2` over all ternary weights: how far they lie from their codes, in steps.

        `q` is the code that `w` is rounded to, -1, 0 or 1, and `m` the step; both are taken as constants, so that the
        gradient of a weight is `2 (w / m - q) / m` over the number of weights. The mean counts for this micro-batch's
        share of the step's tokens.
        """
        build, path = self._builder, "/loss/grid"
        parts = []
        for number, matrix in enumerate(ternary):
            here = f"{path}/{number}"
            distance = build.node(f"{here}/Sub", [matrix.weight, build.stop(f"{here}/nearest", matrix.nearest)])
            squares = self._sum(here, build.node(f"{here}/squares/Mul", [distance, distance]), (0, 1))
            inverse = build.node(f"{here}/inverse/Mul", [matrix.inverse, matrix.inverse])
            parts.append(build.node(f"{here}/Mul", [squares, build.stop(f"{here}/inverse", inverse)]))
        mean = build.node(
            f"{path}/Mul", [self._total(path, parts), build.scalar(1 / sum(matrix.size for matrix in ternary))]
        )
        size = build.node(f"{path}/Size", [self._tokens.ids])
        count = build.node(f"{path}/Cast", [size], {"to": int(ir.DataType.FLOAT)})
        share = build.node(f"{path}/share/Div", [count, self._count(POSITIONS)])
        return build.node(f"{path}/share/Mul", [mean, share])

    def _labels(self) -> ir.Value:
        """int64 `[tokens]`."""
        if self._flat_labels is None:
            labels = self._builder.input(LABELS, ir.DataType.INT64, [BATCH, SEQUENCE])
            self._flat_labels = self._builder.reshape("/loss/labels", labels, -1)
        return self._flat_labels

    def _count(self, name: str) -> ir.Value:
        return self._builder.input(name, ir.DataType.FLOAT, [])

    def _sum(self, path: str, x: ir.Value, axes: tuple[int, ...]) -> ir.Value:
        return self._builder.node(f"{path}/ReduceSum", [x, self._builder.ints(*axes)], {"keepdims": 0})

    def _total(self, path: str, parts: Sequence[ir.Value]) -> ir.Value:
        """The sum of scalars."""
        total = parts[0]
        for number, part in enumerate(parts[1:], 1):
            total = self._builder.node(f"{path}/total_{number}/Add", [total, part])
        return total
