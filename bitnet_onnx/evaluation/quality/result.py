"""What an evaluation found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np

from bitnet_onnx.evaluation.quality._windows_measured import Sums, mean
from bitnet_onnx.evaluation.quality.windows import WindowRule

#: Of the standard normal distribution: 95 % lie within it.
_Z: Final = 1.959964
#: The share of tokens whose divergence is at most the high percentile.
PERCENTILE: Final = 99.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """A model against its reference, on the same tokens.

    Attributes:
        perplexity: of the reference.
        bits_per_byte: of the reference.
        difference: mean nats a token that the model has more.
        difference_error: its standard error over windows, each window paired; None with fewer than two.
        perplexity_ratio: model over reference.
        divergence: Kullback-Leibler divergence of the model from the reference, mean nats a token.
        divergence_error: its standard error.
        divergence_p99: that 99 % of tokens stay below.
        divergence_max: the largest.
        agreement: share of tokens of which both think the same likeliest.
    """

    perplexity: float
    bits_per_byte: float
    difference: float
    difference_error: float | None
    perplexity_ratio: float
    divergence: float
    divergence_error: float | None
    divergence_p99: float
    divergence_max: float
    agreement: float


@dataclass(frozen=True, slots=True)
class TextQuality:
    """A model on one text, or on all.

    Attributes:
        name: the file, or `all`.
        windows: that were read.
        tokens: that were scored.
        bytes: of the scored tokens.
        nats: mean `-log p` a token.
        nats_error: its standard error over windows; None with fewer than two.
        perplexity: `exp(nats)`.
        bits_per_byte: comparable across tokenizers.
        comparison: with the reference, if there is one.
    """

    name: str
    windows: int
    tokens: int
    bytes: int
    nats: float
    nats_error: float | None
    perplexity: float
    bits_per_byte: float
    comparison: Comparison | None = None

    @classmethod
    def of(cls, name: str, texts: Sequence[Sums]) -> TextQuality:
        """The quality over the windows of some texts together."""
        tokens = sum(sum(text.tokens) for text in texts)
        size = sum(sum(text.bytes) for text in texts)
        own = mean([(text.surprise, text.tokens) for text in texts])
        comparison = None
        if all(text.reference for text in texts):
            comparison = _compare(texts, own.value, tokens, size)
        return cls(
            name=name,
            windows=sum(len(text.tokens) for text in texts),
            tokens=tokens,
            bytes=size,
            nats=own.value,
            nats_error=own.error,
            perplexity=_exp(own.value),
            bits_per_byte=_bits_per_byte(own.value, tokens, size),
            comparison=comparison,
        )


def _compare(texts: Sequence[Sums], nats: float, tokens: int, size: int) -> Comparison:
    reference = mean([(text.reference, text.tokens) for text in texts])
    paired = [
        ([mine - other for mine, other in zip(text.surprise, text.reference, strict=True)], text.tokens)
        for text in texts
    ]
    difference = mean(paired)
    divergence = mean([(text.divergence, text.tokens) for text in texts])
    each = np.concatenate([part for text in texts for part in text.divergences])
    return Comparison(
        perplexity=_exp(reference.value),
        bits_per_byte=_bits_per_byte(reference.value, tokens, size),
        difference=difference.value,
        difference_error=difference.error,
        perplexity_ratio=_exp(nats - reference.value),
        divergence=divergence.value,
        divergence_error=divergence.error,
        divergence_p99=float(np.percentile(each, PERCENTILE)),
        divergence_max=float(each.max()),
        agreement=sum(sum(text.agreeing) for text in texts) / tokens,
    )


@dataclass(frozen=True, slots=True)
class Share:
    """A share of questions.

    Attributes:
        correct: how many.
        value: the share.
        low: lower end of the 95 % interval of Wilson, "Probable Inference", 1927.
        high: its upper end.
    """

    correct: int
    value: float
    low: float
    high: float

    @classmethod
    def of(cls, correct: int, total: int) -> Share:
        """The share `correct / total`."""
        share, square = correct / total, _Z * _Z
        middle = share + square / (2 * total)
        half = _Z * math.sqrt(share * (1 - share) / total + square / (4 * total * total))
        scale = 1 + square / total
        return cls(correct, share, max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale))


@dataclass(frozen=True, slots=True)
class TaskQuality:
    """A model on multiple-choice questions.

    Attributes:
        name: the file.
        questions: how many.
        accuracy: the likeliest choice is right: lm-evaluation-harness' `acc`.
        accuracy_normalized: the same with log-likelihoods divided by the bytes of each choice: its `acc_norm`.
        reference_accuracy: of the reference, if there is one.
        reference_accuracy_normalized: of the reference.
        agreement: share of questions that both answer alike, right or wrong.
    """

    name: str
    questions: int
    accuracy: Share
    accuracy_normalized: Share
    reference_accuracy: Share | None = None
    reference_accuracy_normalized: Share | None = None
    agreement: float | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """A package that was evaluated, or stood as the reference.

    Attributes:
        path: what the user named.
        name: of the source, as the manifest has it.
        source_sha256: of the source's weights, as the manifest has it.
        sha256: of the graph that was run, followed by its data.
        bits_per_weight: as the manifest has it.
        activations: `as packaged`, `float`, `8` or `16`.
        converted: what the path was converted to for this evaluation; empty for a package.
    """

    path: str
    name: str
    source_sha256: str
    sha256: str
    bits_per_weight: float | None
    activations: str = "as packaged"
    converted: str = ""


@dataclass(frozen=True, slots=True)
class Quality:
    """Everything that an evaluation found.

    Attributes:
        package: what was evaluated.
        reference: what it was compared with.
        rule: how texts were cut; None without texts.
        texts: a result for each.
        total: over all texts; None without any.
        tasks: a result for each file.
        tool_version: of this package.
        runtime: `operator library`, `function bodies`, `stock operators` or `standard operators`.
    """

    package: Subject
    reference: Subject | None
    rule: WindowRule | None
    texts: tuple[TextQuality, ...]
    total: TextQuality | None
    tasks: tuple[TaskQuality, ...]
    tool_version: str
    runtime: str

    def as_dict(self) -> dict[str, object]:
        """For JSON; numbers without a finite value are null."""
        return {
            "package": asdict(self.package),
            "reference": None if self.reference is None else asdict(self.reference),
            "rule": None if self.rule is None else self.rule.as_dict(),
            "texts": [_finite(asdict(text)) for text in self.texts],
            "total": None if self.total is None else _finite(asdict(self.total)),
            "tasks": [asdict(task) for task in self.tasks],
            "tool_version": self.tool_version,
            "runtime": self.runtime,
        }


def _bits_per_byte(nats: float, tokens: int, size: int) -> float:
    return nats * tokens / (math.log(2) * size) if size else math.inf


def _exp(value: float) -> float:
    """`exp`, infinite beyond a double."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _finite(fields: dict[str, object]) -> dict[str, object]:
    """JSON has no infinity."""
    return {
        name: _finite(value)
        if isinstance(value, dict)
        else None
        if isinstance(value, float) and not math.isfinite(value)
        else value
        for name, value in fields.items()
    }
