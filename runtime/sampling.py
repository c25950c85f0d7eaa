"""Choosing the next token from the logits."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitnet_onnx.errors import BitnetOnnxError, InputError

_MAX_STOP_STRINGS = 16
_MAX_STOP_CHARACTERS = 256
_MAX_BIAS = 100


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """How tokens are chosen and when generation ends.

    Args:
        max_new_tokens: most tokens to generate, at least 1.
        temperature: divides the logits; 0 is greedy, and then `top_k`, `top_p`, `min_p` and `seed` are idle.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the fewest most probable tokens whose probabilities reach this sum, in (0, 1].
        min_p: keep tokens at least this fraction as probable as the best, in [0, 1).
        repetition_penalty: divides positive and multiplies negative logits of tokens already seen, in the
            prompt or since; 1 is off (Keskar et al. 2019, arXiv:1909.05858, section 4.1).
        presence_penalty: subtracted from the logits of tokens that were drawn before, -2 to 2.
        frequency_penalty: the same as often as they were drawn, -2 to 2 (both as OpenAI's API defines them).
        logit_bias: pairs of token id and what is added to its logit, -100 to 100, before everything else.
        seed: makes a run repeatable; None draws fresh entropy.
        stop: strings that end generation; they are not part of the text.

    Raises:
        InputError: a value is outside its range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_int("max_new_tokens", self.max_new_tokens, 1)
        _check_int("top_k", self.top_k, 0)
        if self.seed is not None:
            _check_int("seed", self.seed, 0)
        _check_float("temperature", self.temperature)
        _check_float("top_p", self.top_p)
        _check_float("min_p", self.min_p)
        _check_float("repetition_penalty", self.repetition_penalty)
        _check_float("presence_penalty", self.presence_penalty)
        _check_float("frequency_penalty", self.frequency_penalty)
        for token, bias in self.logit_bias:
            _check_int("a token of logit_bias", token, 0)
            _check_float("a bias of logit_bias", bias)
            if abs(bias) > _MAX_BIAS:
                raise InputError(f"logit_bias of token {token} is {bias}, expected -{_MAX_BIAS} to {_MAX_BIAS}")
        for name, value, fits, wanted in (
            ("temperature", self.temperature, self.temperature >= 0, "at least 0"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", self.min_p, 0 <= self.min_p < 1, "at least 0 and below 1"),
            ("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0, "above 0"),
            ("presence_penalty", self.presence_penalty, abs(self.presence_penalty) <= 2, "-2 to 2"),
            ("frequency_penalty", self.frequency_penalty, abs(self.frequency_penalty) <= 2, "-2 to 2"),
        ):
            if not fits:
                raise InputError(f"{name} is {value}, expected {wanted}")
        if not isinstance(self.stop, tuple) or len(self.stop) > _MAX_STOP_STRINGS:
            raise InputError(f"stop is {self.stop!r:.40}, expected a tuple of at most {_MAX_STOP_STRINGS} strings")
        for text in self.stop:
            if not isinstance(text, str) or not 1 <= len(text) <= _MAX_STOP_CHARACTERS:
                raise InputError(f"a stop string has 1 to {_MAX_STOP_CHARACTERS} characters, not {text!r:.40}")


def _check_int(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} is {value!r:.40}, expected an integer of at least {least}")


def _check_float(name: str, value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise InputError(f"{name} is {value!r:.40}, expected a finite number")


class Sampler:
    """Draws tokens by one set of parameters; it remembers which tokens it was told of, and its generator.

    The order is the field's: biases and penalties, temperature, top-k, top-p, min-p, then one draw by inverse
    cumulative sum from numpy's PCG64. Each filter sees the probabilities that the ones before it left,
    renormalized. Greedy is the largest logit after biases and penalties, the lowest id among equals.
    """

    def __init__(self, parameters: SamplingParameters) -> None:
        self._parameters = parameters
        # Only drawing needs numpy's generators, whose import would delay the first token.
        self._generator = np.random.Generator(np.random.PCG64(parameters.seed)) if parameters.temperature else None
        self._seen: set[int] = set()
        self._drawn: dict[int, int] = {}

    def observe(self, ids: Iterable[int]) -> None:
        """Tells which tokens stand in the context, for the repetition penalty."""
        self._seen.update(ids)

    def sample(self, logits: npt.NDArray[np.float32]) -> int:
        """The next token id for logits `[vocab_size]`; -inf excludes a token.

        Raises:
            BitnetOnnxError: a logit is NaN, or the largest is infinite.
        """
        # NaN counts as the largest.
        best = int(logits.argmax())
        largest = float(logits[best])
        if not math.isfinite(largest):
            raise BitnetOnnxError(
                f"the largest logit is {largest}: the model computed no usable result; convert it again with more "
                f"bits, or check the checkpoint for NaN"
            )
        if self._generator is None and not (self._penalizes or self._adds):
            return best
        scores = logits.astype(np.float64)
        self._add_biases(scores)
        self._penalize(scores)
        token = self._draw(scores)
        if self._parameters.presence_penalty or self._parameters.frequency_penalty:
            self._drawn[token] = self._drawn.get(token, 0) + 1
        return token

    def _draw(self, scores: npt.NDArray[np.float64]) -> int:
        if self._generator is None:
            return int(scores.argmax())
        # The largest becomes 0 first: a tiny temperature then cannot overflow.
        scores -= scores.max()
        with np.errstate(over="ignore"):
            scores /= self._parameters.temperature
        kept = self._keep_top_k(scores)
        probabilities = np.exp(scores[kept])
        kept, probabilities = self._keep_top_p(kept, probabilities)
        strong = probabilities >= self._parameters.min_p * probabilities.max()
        kept, probabilities = kept[strong], probabilities[strong]
        cumulative = probabilities.cumsum()
        drawn = self._generator.random() * cumulative[-1]
        return int(kept[min(int(cumulative.searchsorted(drawn, side="right")), kept.size - 1)])

    @property
    def _adds(self) -> bool:
        parameters = self._parameters
        return bool(parameters.logit_bias or parameters.presence_penalty or parameters.frequency_penalty)

    def _add_biases(self, scores: npt.NDArray[np.float64]) -> None:
        for token, bias in self._parameters.logit_bias:
            if token < scores.size:
                scores[token] += bias
        presence, frequency = self._parameters.presence_penalty, self._parameters.frequency_penalty
        for token, count in self._drawn.items():
            scores[token] -= presence + frequency * count

    @property
    def _penalizes(self) -> bool:
        return self._parameters.repetition_penalty != 1 and bool(self._seen)

    def _penalize(self, scores: npt.NDArray[np.float64]) -> None:
        penalty = self._parameters.repetition_penalty
        if not self._penalizes:
            return
        seen = np.fromiter(self._seen, np.int64, len(self._seen))
        values = scores[seen]
        scores[seen] = np.where(values > 0, values / penalty, values * penalty)

    def _keep_top_k(self, scores: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
        """Ids of the k best scores in ascending order, ties at the border resolved by the lowest id."""
        k = self._parameters.top_k
        if k == 0 or k >= scores.size:
            return np.arange(scores.size)
        border = np.partition(scores, scores.size - k)[scores.size - k]
        above = np.flatnonzero(scores > border)
        return np.sort(np.concatenate([above, np.flatnonzero(scores == border)[: k - above.size]]))

    def _keep_top_p(
        self, kept: npt.NDArray[np.intp], probabilities: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
        if self._parameters.top_p == 1:
            return kept, probabilities
        order = np.argsort(-probabilities, kind="stable")
        cumulative = probabilities[order].cumsum()
        # The token that reaches the sum belongs to the set.
        count = int(cumulative.searchsorted(self._parameters.top_p * cumulative[-1], side="left")) + 1
        order = order[:count]
        return kept[order], probabilities[order]
