"""A package of ours beside the reference: prompts through both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from bitnet_onnx.converters.coreml._model import DECODE, IDS, LOGITS, MASK, PREFILL
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.errors import PackageError
from bitnet_onnx.evaluation.mil._matrices import PackageDecoder
from bitnet_onnx.evaluation.mil._report import LayerError, LogitError, Overflow, Way
from bitnet_onnx.evaluation.mil._types import Array
from bitnet_onnx.evaluation.mil.interpreter import Interpreter, Run
from bitnet_onnx.evaluation.mil.package import Package
from bitnet_onnx.evaluation.reference import Forward, Prompt, forward, run_layer
from bitnet_onnx.metrics import Error, relative_error

#: Relative, of logits and of layers.
LOGIT_TOLERANCE: Final = 1e-2
LAYER_TOLERANCE: Final = 1e-3
#: A tolerance beyond it is what the reference moves by itself under noise, times this: one noisy run is no bound.
MOVEMENTS: Final = 4.0
#: Calls with a single token at the end of a prompt that is read in several.
SINGLE_CALLS: Final = 2
_NOISE: Final = 1

Ids = tuple[int, ...]
#: Called as it goes: what is done now, how many steps of it, of how many.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Functions:
    """Names of the functions of a package: for many tokens and for one."""

    prefill: str
    decode: str

    @classmethod
    def of(cls, package: Package) -> Functions:
        """Those of a package; the main one is both where they have other names."""
        known = package.program.functions
        return cls(*(name if name in known else package.program.main for name in (PREFILL, DECODE)))

    def reading(self, count: int) -> str:
        """The one for so many tokens in one call."""
        return self.decode if count == 1 else self.prefill


def hidden_name(layer: int) -> str:
    """What a program calls the hidden states after a layer."""
    return f"layers_{layer}_output"


class Subject:
    """A package under examination.

    Args:
        interpreter: that runs it.
        functions: which it has.
        vocabulary: logits of a token.
    """

    def __init__(self, interpreter: Interpreter, functions: Functions, vocabulary: int) -> None:
        self.interpreter = interpreter
        self._functions = functions
        self._vocabulary = vocabulary
        self._overflows: dict[tuple[str, str], Overflow] = {}

    @property
    def overflows(self) -> tuple[Overflow, ...]:
        """What was found so far, each operation once."""
        return tuple(self._overflows.values())

    def whole(self, ids: Ids, layers: Sequence[int] = (), *, masked: bool = False) -> tuple[Array, list[Array]]:
        """A prompt in one call.

        Args:
            ids: the prompt.
            layers: after which hidden states are given.
            masked: the mask says what is not to be seen; otherwise it is zeros.

        Returns:
            Logits `[T, vocabulary]`, and hidden states `[T, hidden]`.
        """
        mask = np.zeros((1, 1, len(ids), len(ids)), np.float32)
        if masked:
            mask[..., ~np.tri(len(ids), dtype=bool)] = -np.inf
        names = [hidden_name(layer) for layer in layers]
        run = self._call(self._functions.prefill, ids, mask, None, len(ids), names)
        return self._logits(run, len(ids)), [run.kept[name].reshape(len(ids), -1) for name in names]

    def cached(self, ids: Ids) -> Array:
        """A prompt in several calls, the last ones with a single token: logits `[T, vocabulary]`."""
        states = self.interpreter.states(self._functions.prefill)
        single = min(SINGLE_CALLS, len(ids) - 1)
        first = (len(ids) - single + 1) // 2
        second = len(ids) - single - first
        logits, done = [], 0
        for count in [part for part in (first, second, *(1,) * single) if part]:
            last = count == 1 and done >= len(ids) - single
            function = self._functions.decode if last else self._functions.prefill
            mask = np.zeros((1, 1, count, done + count), np.float32)
            run = self._call(function, ids[done : done + count], mask, states, len(ids), [])
            logits.append(self._logits(run, count))
            done += count
        return np.concatenate(logits)

    def _call(
        self, function: str, ids: Ids, mask: Array, states: dict[str, Array] | None, tokens: int, keep: Sequence[str]
    ) -> Run:
        run = self.interpreter.run(function, {IDS: np.array([ids], np.int32), MASK: mask}, states, keep)
        mode = self.interpreter.mode
        for finding in run.findings:
            key = (finding.operation, finding.within)
            if key not in self._overflows:
                self._overflows[key] = Overflow(
                    finding.operation, finding.type, tokens, str(mode), finding.count, finding.largest, str(finding)
                )
        return run

    def _logits(self, run: Run, count: int) -> Array:
        logits = run.outputs.get(LOGITS)
        if logits is None or logits.shape != (1, count, self._vocabulary):
            shapes = {name: list(value.shape) for name, value in run.outputs.items()}
            raise PackageError(f"outputs are {shapes!s:.200}, expected {LOGITS} [1, {count}, {self._vocabulary}]")
        return np.asarray(logits[0])


class Reference:
    """The reference on prompts, without and with noise, whose difference is what any implementation may differ by.

    Args:
        spec: what the decoder is.
        decoder: the tensors of the package.
        prompts: to read.
    """

    def __init__(self, spec: DecoderSpec, decoder: PackageDecoder, prompts: Sequence[Ids]) -> None:
        self._spec = spec
        self._decoder = decoder
        self._prompts = prompts
        self._sequences = [Prompt(ids, noise) for noise in (None, _NOISE) for ids in prompts]
        self._plain: Sequence[Forward] = ()
        self._shaken: Sequence[Forward] = ()

    def run(self, layers: Sequence[int], progress: Progress) -> None:
        """All prompts, all the way."""
        results = forward(
            self._spec,
            self._decoder,
            self._decoder,
            self._sequences,
            layers=layers,
            progress=lambda done, total: progress("reference", done, total),
        )
        count = len(self._prompts)
        self._plain, self._shaken = results[:count], results[count:]

    def logits(self, way: Way, found: Mapping[int, Array], *, judged: bool = True) -> list[LogitError]:
        """Logits of some prompts, by their place, against the reference's."""
        pairs = zip(self._plain, self._shaken, strict=True)
        moved = max(relative_error(one.logits, other.logits) for one, other in pairs)
        tolerance = max(LOGIT_TOLERANCE, MOVEMENTS * moved) if judged else None
        return [
            LogitError(len(logits), way, relative_error(self._plain[place].logits, logits), tolerance)
            for place, logits in found.items()
        ]

    def layer(self, index: int, before: Sequence[Array] | None, after: Sequence[Array]) -> LayerError:
        """One layer of the package on its own input.

        Args:
            index: of the layer.
            before: hidden states of the package for each prompt before it; None for the first layer.
            after: those after it.
        """
        hidden = None if before is None else np.concatenate([*before, *before])
        made = run_layer(self._spec, self._decoder, self._decoder, self._sequences, index, hidden)
        plain, shaken = np.split(made, 2)
        found = np.concatenate(after)
        tolerance = max(LAYER_TOLERANCE, MOVEMENTS * relative_error(plain, shaken))
        whole = Error()
        for result, states in zip(self._plain, after, strict=True):
            whole.add(result.hidden[index], states)
        return LayerError(index, relative_error(plain, found), tolerance, whole.relative)
