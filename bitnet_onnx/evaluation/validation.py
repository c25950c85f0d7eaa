"""Does a package hold the source's weights, and does it compute what they say?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from bitnet_onnx.converters.model import SourceModel, open_model
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.errors import InputError, PackageError
from bitnet_onnx.evaluation._linear import SourceRule
from bitnet_onnx.evaluation._package_tensors import PackageTensors
from bitnet_onnx.evaluation._report import LayerCheck, LogitCheck, Validation, WeightCheck
from bitnet_onnx.evaluation._session import PackageSession
from bitnet_onnx.evaluation._weights import PackageRule, check_weights, recorded_precisions
from bitnet_onnx.evaluation.reference import Forward, Prompt, forward
from bitnet_onnx.metrics import Error, relative_error
from bitnet_onnx.package_format import MANIFEST
from bitnet_onnx.policy import Precision
from bitnet_onnx.quantized import FloatArray
from bitnet_onnx.runtime import Device, PackageInfo, auto_select_device
from bitnet_onnx.runtime._json import read_object
from bitnet_onnx.runtime.tokenizer import TextTokenizer

#: Tokens of the prompts that are made up where the user gives none.
DEFAULT_TOKENS: Final = (1, 7, 64)
#: Largest difference of a logit where nothing is rounded to integers on the way.
TOLERANCE: Final = 1e-3
#: Where activations are rounded, one unit in the last place may make another integer: the reference then moves itself,
#: and what it moves under `NOISES` runs is the yardstick. Their largest value is no bound, hence the factor.
MOVEMENTS: Final = 4.0
NOISES: Final = (1, 2)
#: The `fast` function bodies round activations in groups of their own: relative error that is allowed.
FAST_TOLERANCE: Final = 0.05
_SIZES: Final = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
)
#: Steps through the vocabulary of the prompts that are made up, and where they begin.
_STRIDE, _START = 7919, 1009

#: Called as it goes: what is done now, how many steps of it, of how many.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What to validate.

    Attributes:
        tokens: lengths of the prompts that are made up.
        prompt: a text to read instead of them.
        layers: hidden states to compare; None is none, and an empty tuple is those of all layers.
        fallback: run the function bodies although the operator library is there.
    """

    tokens: tuple[int, ...] = DEFAULT_TOKENS
    prompt: str | None = None
    layers: tuple[int, ...] | None = None
    fallback: bool = False


def validate(
    package: str | Path, source: str | Path, options: Options | None = None, *, progress: Progress | None = None
) -> Validation:
    """Compare a package with the checkpoint that it was made from.

    Args:
        package: the package directory.
        source: the Hugging Face directory or the GGUF file.
        options: what to compare.
        progress: called as it goes.

    Raises:
        InputError: one of the two cannot be read, they are of different models, or an option is impossible.
    """
    chosen = options or Options()
    info = PackageInfo.open(package)
    path = str(info.directory / MANIFEST)
    manifest = read_object(info.directory / MANIFEST)
    with open_model(Path(source), context_length=_context(Path(source), info)) as model:
        _check_sizes(model.spec, manifest, path)
        run = _Run(info, model, recorded_precisions(manifest, model.spec, path), _fallback(manifest), progress)
        return run.validation(chosen, _warnings(model, manifest))


def made_up(length: int, vocab_size: int) -> tuple[int, ...]:
    """Token ids that are the same on every machine."""
    return tuple((_START + _STRIDE * index) % vocab_size for index in range(length))


class _Run:
    """One validation."""

    def __init__(
        self,
        info: PackageInfo,
        model: SourceModel,
        precisions: Mapping[str, Precision],
        fallback: str,
        progress: Progress | None,
    ) -> None:
        self._info = info
        self._model = model
        self._precisions = precisions
        self._fallback = fallback
        self._progress = progress
        self._tensors = PackageTensors(info.directory, model.spec)

    def validation(self, options: Options, warnings: tuple[str, ...]) -> Validation:
        """Weights first: where tensors are missing nothing can be computed."""
        spec = self._model.spec
        prompts = self._prompts(options)
        layers = _layers(options, spec.num_hidden_layers)
        device = Device() if options.fallback else auto_select_device()
        weights = self._weights()
        logits: tuple[LogitCheck, ...] = ()
        states: tuple[LayerCheck, ...] = ()
        movement = 0.0
        if not any(check.problem for check in weights):
            references = self._forward("reference", PackageRule(self._tensors, self._precisions), prompts, layers)
            movement = _movement(references, len(prompts))
            sources = self._source(prompts)
            whole = PackageSession(self._info, device, spec, layers)
            found = [whole.run(prompt) for prompt in prompts]
            states = _states(layers, [hidden for _, hidden in found], references)
            del whole
            gate = self._gate(device, movement)
            logits = tuple(
                _compared("whole", result.logits, got, origin, gate)
                for result, (got, _), origin in zip(references, found, sources, strict=False)
            )
            logits += self._cached(device, prompts, references, sources, gate)
        runtime = "function bodies" if device.operator_library is None else "operator library"
        return Validation(
            package=str(self._info.directory),
            source=str(self._model.path),
            runtime=runtime if device.operator_library is not None else f"{runtime} ({self._fallback})",
            weights=weights,
            logits=logits,
            layers=states,
            movement=movement,
            warnings=warnings,
        )

    def _weights(self) -> tuple[WeightCheck, ...]:
        total = sum(1 for _ in self._model.spec.tensors())
        checks = []
        for check in check_weights(self._model.spec, self._model.tensors, self._tensors, self._precisions):
            checks.append(check)
            self._report("weights", len(checks), total)
        return tuple(checks)

    def _forward(
        self, name: str, rule: PackageRule | SourceRule, prompts: Sequence[tuple[int, ...]], layers: tuple[int, ...]
    ) -> list[Forward]:
        """The prompts, and behind them the same under noise, where noise can make another integer."""
        rounded = any(precision.activation_bits for precision in self._rounded())
        noises = (None, *NOISES) if isinstance(rule, PackageRule) and rounded else (None,)
        tensors = rule.tensors if isinstance(rule, PackageRule) else self._model.tensors
        return forward(
            self._model.spec,
            tensors,
            rule,
            [Prompt(prompt, noise) for noise in noises for prompt in prompts],
            layers=layers,
            progress=lambda done, total: self._report(name, done, total),
        )

    def _source(self, prompts: Sequence[tuple[int, ...]]) -> list[FloatArray]:
        return [result.logits for result in self._forward("source", SourceRule(self._model), prompts, ())]

    def _cached(
        self,
        device: Device,
        prompts: Sequence[tuple[int, ...]],
        references: Sequence[Forward],
        sources: Sequence[FloatArray],
        gate: tuple[str, float],
    ) -> tuple[LogitCheck, ...]:
        engine = PackageSession(self._info, device, self._model.spec, engine=self._info.engine_path is not None)
        checks = []
        for prompt, result, origin in zip(prompts, references, sources, strict=False):
            if len(prompt) > 1:
                got, _ = engine.run(prompt, (len(prompt) + 1) // 2)
                checks.append(_compared("cached", result.logits[-1:], got[-1:], origin[-1:], gate, len(prompt)))
        return tuple(checks)

    def _rounded(self) -> list[Precision]:
        return [precision for precision in self._precisions.values() if precision.weights != "float32"]

    def _gate(self, device: Device, movement: float) -> tuple[str, float]:
        rounded = any(precision.activation_bits for precision in self._rounded())
        if rounded and device.operator_library is None and self._fallback == "fast":
            return "relative", FAST_TOLERANCE
        return "difference", max(TOLERANCE, MOVEMENTS * movement)

    def _prompts(self, options: Options) -> list[tuple[int, ...]]:
        spec = self._model.spec
        if options.prompt is not None:
            ids = TextTokenizer(self._info).encode(options.prompt, parse_special=False, add_bos=True)
            if not 1 <= len(ids) <= spec.context_length:
                raise InputError(f"--prompt has {len(ids)} tokens: expected 1 to {spec.context_length}")
            return [tuple(ids)]
        for length in options.tokens:
            if not 1 <= length <= spec.context_length:
                raise InputError(f"--tokens holds {length}: expected 1 to {spec.context_length}, the context")
        return [made_up(length, spec.vocab_size) for length in options.tokens]

    def _report(self, name: str, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(name, done, total)


def _compared(
    way: str,
    expected: FloatArray,
    got: FloatArray,
    source: FloatArray,
    gate: tuple[str, float],
    tokens: int | None = None,
) -> LogitCheck:
    measure, tolerance = gate
    with np.errstate(invalid="ignore", over="ignore"):
        value = relative_error(expected, got) if measure == "relative" else float(np.abs(got - expected).max())
        divergence = float(_divergence(source, got))
    return LogitCheck(
        tokens=len(expected) if tokens is None else tokens,
        way="whole" if way == "whole" else "cached",
        measure="relative" if measure == "relative" else "difference",
        value=value,
        tolerance=tolerance,
        divergence=divergence,
        agreement=float(np.mean(got.argmax(axis=-1) == source.argmax(axis=-1))),
    )


def _divergence(source: FloatArray, got: FloatArray) -> np.float64:
    """Mean over positions of `sum p (log p - log q)`, in nats."""
    total = np.float64(0)
    for left, right in zip(source, got, strict=True):
        p, q = (_log_softmax(row) for row in (left, right))
        total += np.sum(np.exp(p) * (p - q))
    return total / len(source)


def _log_softmax(logits: FloatArray) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def _movement(references: Sequence[Forward], prompts: int) -> float:
    """Largest difference between the reference and itself under noise."""
    differences = [
        float(np.abs(result.logits - references[index % prompts].logits).max())
        for index, result in enumerate(references)
        if index >= prompts
    ]
    return max(differences, default=0.0)


def _states(
    layers: Sequence[int], found: Sequence[Sequence[FloatArray]], references: Sequence[Forward]
) -> tuple[LayerCheck, ...]:
    checks = []
    for place, layer in enumerate(layers):
        error, movement = Error(), Error()
        for index, result in enumerate(references):
            expected = references[index % len(found)].hidden[layer]
            if index < len(found):
                error.add(expected, found[index][place])
            else:
                movement.add(expected, result.hidden[layer])
        checks.append(LayerCheck(layer, error.relative, movement.relative))
    return tuple(checks)


def _layers(options: Options, count: int) -> tuple[int, ...]:
    if options.layers is None:
        return ()
    for layer in options.layers:
        if not 0 <= layer < count:
            raise InputError(f"--layers holds {layer}: expected 0 to {count - 1}")
    return options.layers or tuple(range(count))


def _context(source: Path, info: PackageInfo) -> int | None:
    """The context length to open the source with: None where it is its own."""
    with open_model(source) as model:
        same = model.spec.context_length == info.architecture.context_length
    return None if same else info.architecture.context_length


def _check_sizes(spec: DecoderSpec, manifest: Mapping[str, object], path: str) -> None:
    architecture = manifest.get("architecture")
    recorded = architecture if isinstance(architecture, dict) else {}
    for name in _SIZES:
        if recorded.get(name) != getattr(spec, name):
            raise PackageError(
                f"{path}: {name} is {recorded.get(name)!r:.40}, that of the source is {getattr(spec, name)}: "
                f"the package was made from another model"
            )


def _fallback(manifest: Mapping[str, object]) -> str:
    operator = manifest.get("operator")
    return "exact" if isinstance(operator, dict) and operator.get("fallback") == "exact" else "fast"


def _warnings(model: SourceModel, manifest: Mapping[str, object]) -> tuple[str, ...]:
    source = manifest.get("source")
    recorded = source.get("sha256") if isinstance(source, dict) else None
    if recorded == model.sha256:
        return ()
    return (
        f"the package was made from weights with the sha256 {recorded!s:.64}, those of {model.path} have {model.sha256}",
    )
