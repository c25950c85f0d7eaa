"""What a training run is made of, as a configuration file says it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

#: Label of a token that no loss counts.
IGNORED: Final = -100


class Curve(enum.StrEnum):
    """How a quantity goes from its start to its end; `x` runs from 0 to 1."""

    #: the end from the first step on
    CONSTANT = "constant"
    #: `x`
    LINEAR = "linear"
    #: `(1 - cos(pi x)) / 2`
    COSINE = "cosine"
    #: the logistic function over [-6, 6], scaled to begin at 0 and end at 1
    SIGMOID = "sigmoid"


@dataclass(frozen=True, slots=True)
class Ramp:
    """A number that changes over the run.

    Attributes:
        end: from step `begin + steps` on.
        start: until step `begin`.
        begin: step at which it starts to move.
        steps: that it takes.
        curve: between them.
    """

    end: float
    start: float = 0.0
    begin: int = 0
    steps: int = 0
    curve: Curve = Curve.CONSTANT


class BlockWeights(enum.StrEnum):
    """What the linear layers of the blocks are trained as."""

    TERNARY = "ternary"
    FLOAT = "float"


class HeadWeights(enum.StrEnum):
    """What embedding and head are trained as."""

    FLOAT = "float"
    INT8 = "int8"


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """What is trained.

    Attributes:
        source: a checkpoint, a package or a name of the zoo; None for a random start.
        architecture: of a random start, the fields of a config.json.
        tokenizer: of a random start: a tokenizer.json or a directory with one; None trains a byte-level BPE of
            `vocab_size` entries on the training texts.
        sub_norms: put BitNet's norms before `o_proj` and `down_proj`, where they are not there yet.
        weights: of the linear layers in the blocks.
        activation_bits: 8, or 0 for float activations.
        head: embedding and head.
    """

    source: str | None = None
    architecture: Mapping[str, object] | None = None
    tokenizer: Path | None = None
    sub_norms: bool = False
    weights: BlockWeights = BlockWeights.TERNARY
    activation_bits: int = 8
    head: HeadWeights = HeadWeights.FLOAT


@dataclass(frozen=True, slots=True)
class DataSettings:
    """What is read.

    Attributes:
        train: texts (`.txt`, any other suffix too) and JSONL files (`.jsonl`): a line has `text`, or `messages` as
            chats have them.
        validation: the same, for evaluation.
        holdout: share at the end of each training file that is kept for validation instead, 0 to 0.5.
        length: tokens of a window.
        answers_only: in chats only what the assistant says is learned.
        cache: where tokens are kept; None is beside the run.
    """

    train: tuple[Path, ...]
    validation: tuple[Path, ...] = ()
    holdout: float = 0.0
    length: int = 256
    answers_only: bool = True
    cache: Path | None = None


class OptimizerName(enum.StrEnum):
    """Which rule turns gradients into steps."""

    ADAMW = "adamw"
    SGD = "sgd"
    #: orthogonal steps of ternary matrices in units of their scale; AdamW for all others
    TERNARY_MUON = "ternary_muon"


class RateCurve(enum.StrEnum):
    """The learning rate after its warm-up."""

    COSINE = "cosine"
    LINEAR = "linear"
    CONSTANT = "constant"
    #: constant, then a linear decay over the last part (warm-up, stable, decay)
    WSD = "wsd"


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """How the weights move.

    Attributes:
        name: of the rule.
        learning_rate: after the warm-up.
        curve: of the learning rate.
        warmup: steps over which the rate rises linearly from 0.
        minimum: share of `learning_rate` at the end.
        decay: share of the steps that WSD's decay takes.
        weight_decay: of matrices; norms and biases have none.
        betas: AdamW's decay rates of the moments.
        epsilon: AdamW's.
        momentum: of SGD.
        clip: greatest norm of all gradients together; 0 is off.
        pace: of `ternary_muon`: size of a step of a ternary matrix over learning rate and scale of the matrix.
    """

    name: OptimizerName = OptimizerName.ADAMW
    learning_rate: float = 1e-3
    curve: RateCurve = RateCurve.COSINE
    warmup: int = 0
    minimum: float = 0.1
    decay: float = 0.2
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = 1e-8
    momentum: float = 0.9
    clip: float = 1.0
    pace: float = 6.0


class LayerOrder(enum.StrEnum):
    """In which order layers are quantized."""

    FORWARD = "forward"
    BACKWARD = "backward"
    #: the least sensitive first, by the table in a file of statistics
    SENSITIVITY = "sensitivity"


@dataclass(frozen=True, slots=True)
class QuantizationSettings:
    """How quantization sets in.

    Attributes:
        strength: of the first group: 0 is float, 1 is quantized; each later group follows `stride` steps behind.
        groups: that the layers are divided into.
        stride: steps between two groups.
        order: of the groups.
        statistics: a file of `bitnet-onnx calibrate --sensitivity`, for `order = "sensitivity"`.
    """

    strength: Ramp = Ramp(1.0)
    groups: int = 1
    stride: int = 0
    order: LayerOrder = LayerOrder.FORWARD
    statistics: Path | None = None


@dataclass(frozen=True, slots=True)
class LossSettings:
    """What is minimized: the sum of the terms whose weight is given.

    Attributes:
        cross_entropy: weight of the next token's cross entropy.
        distillation: weight of `T^2 * KL(teacher || student)` of the logits.
        temperature: `T` of the distillation.
        relation: weight of the attention-relation distillation.
        relation_layer: whose queries, keys and values are compared; negative counts from the end.
        relation_heads: that the features are cut into for it; 0 is the number of attention heads, or the next fewer
            that divide the features of the model and of its teacher.
        grid: weight of the pull toward the ternary grid.
        teacher: a checkpoint, a package or a name of the zoo; None is the model's own start, as floats.
    """

    cross_entropy: Ramp = Ramp(1.0)
    distillation: Ramp | None = None
    temperature: float = 1.0
    relation: Ramp | None = None
    relation_layer: int = -1
    relation_heads: int = 0
    grid: Ramp | None = None
    teacher: str | None = None


class EngineName(enum.StrEnum):
    """What computes gradients."""

    #: the faster of the others that is there
    AUTO = "auto"
    ONNXRUNTIME = "onnxruntime"
    ONNXRUNTIME_TRAINING = "onnxruntime-training"


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Where gradients are computed.

    Attributes:
        name: of the engine.
        threads: of it; 0 is all cores.
        memory: bytes that training may take; 0 is what is free.
        recompute: compute each layer's values again in the backward pass; None decides by `memory`.
        micro_batch: sequences at once; 0 decides by `memory`.
    """

    name: EngineName = EngineName.AUTO
    threads: int = 0
    memory: int = 0
    recompute: bool | None = None
    micro_batch: int = 0


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """How long, and what is kept.

    Attributes:
        steps: of the optimizer.
        batch: sequences of a step, all processes together.
        evaluate_every: steps between evaluations; 0 is at the end only.
        evaluation_windows: at most so many windows of the validation data.
        checkpoint_every: steps between checkpoints; 0 is at the end only.
        keep: checkpoints that are kept, the best one besides.
        patience: evaluations without a better one before the run stops; 0 is never.
        rollbacks: times that the run goes back to its last checkpoint after a NaN before it gives up.
        log_every: steps between records of the log.
        measure_every: steps between measurements of quantization; 0 is never.
        tensorboard: write files for TensorBoard.
    """

    steps: int
    batch: int = 8
    evaluate_every: int = 0
    evaluation_windows: int = 64
    checkpoint_every: int = 0
    keep: int = 2
    patience: int = 0
    rollbacks: int = 2
    log_every: int = 1
    measure_every: int = 0
    tensorboard: bool = False


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """One run.

    Attributes:
        output: its directory.
        model: what is trained.
        data: what it reads.
        loop: how long.
        optimizer: how weights move.
        quantization: how quantization sets in.
        losses: what is minimized.
        engine: where gradients are computed.
        seed: of the start and of the order of the data.
    """

    output: Path
    model: ModelSettings
    data: DataSettings
    loop: LoopSettings
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    quantization: QuantizationSettings = field(default_factory=QuantizationSettings)
    losses: LossSettings = field(default_factory=LossSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    seed: int = 0
