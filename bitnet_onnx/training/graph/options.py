"""What a training graph computes, and what its inputs and outputs are called."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from bitnet_onnx.training.settings import BlockWeights, HeadWeights

#: int64 `[batch, length]`.
INPUT_IDS: Final = "input_ids"
#: int64 `[batch, length]`: the token that follows, or `settings.IGNORED`.
LABELS: Final = "labels"
#: float scalar: labelled tokens of the whole step; losses of tokens are divided by it.
NORMALIZER: Final = "normalizer"
#: float scalar: tokens of the whole step, labelled or not.
POSITIONS: Final = "positions"
#: float `[groups]`, 0 to 1.
STRENGTH: Final = "quantization.strength"
#: float `[batch, length, vocabulary]`.
TEACHER_LOGITS: Final = "teacher.logits"
#: float `[batch, length, width]` each; also outputs of a teacher's graph, there without `teacher.`.
RELATION_STATES: Final = ("query", "key", "value")
#: float scalar output.
LOSS: Final = "loss"
#: Domain and operator that stop the gradient; engines replace it by what they know.
TRAINING_DOMAIN: Final = "bitnet.training"
STOP_GRADIENT: Final = "StopGradient"


class Term(enum.StrEnum):
    """Terms of the loss; each has a scalar input `weight.<term>` and an unweighted output `loss.<term>`."""

    CROSS_ENTROPY = "cross_entropy"
    DISTILLATION = "distillation"
    RELATION = "relation"
    GRID = "grid"


def weight_input(term: Term) -> str:
    """The input that holds a term's weight."""
    return f"weight.{term}"


def loss_output(term: Term) -> str:
    """The output that holds a term before it is weighted."""
    return f"loss.{term}"


def teacher_state(name: str) -> str:
    """The input that holds the teacher's queries, keys or values."""
    return f"teacher.{name}"


def gradient_output(parameter: str) -> str:
    """The output of a differentiated graph that holds a parameter's gradient."""
    return f"gradient.{parameter}"


@dataclass(frozen=True, slots=True)
class GraphOptions:
    """What is computed of a decoder.

    Attributes:
        max_length: most tokens of a window.
        weights: of the linear layers in the blocks.
        activation_bits: of their inputs where they are ternary, 8 or 0, and of the head's where it is int8.
        head: embedding and head.
        groups: for each layer the entry of `STRENGTH` that it follows; empty where all follow the first.
        terms: of the loss. Empty: a teacher's graph, whose outputs are `logits` and, with `relation_layer`,
            `RELATION_STATES`.
        temperature: of the distillation.
        relation_layer: whose queries (after their rotation), keys and values are compared, or None.
        relation_heads: that their features are cut into.
    """

    max_length: int
    weights: BlockWeights = BlockWeights.TERNARY
    activation_bits: int = 8
    head: HeadWeights = HeadWeights.FLOAT
    groups: tuple[int, ...] = ()
    terms: frozenset[Term] = frozenset({Term.CROSS_ENTROPY})
    temperature: float = 1.0
    relation_layer: int | None = None
    relation_heads: int = 0
