"""Does a saved Core ML package hold the source's weights, and does its program compute what they say?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bitnet_onnx.converters._scaling import Scaling
from bitnet_onnx.converters.coreml.package import TOKENIZER_SUFFIX
from bitnet_onnx.converters.model import SourceModel, open_model
from bitnet_onnx.errors import InputError, PackageError, UnsupportedError
from bitnet_onnx.evaluation._report import WeightCheck
from bitnet_onnx.evaluation.mil._manifest import Manifest, read_manifest
from bitnet_onnx.evaluation.mil._matrices import PackageDecoder, PackageMatrices
from bitnet_onnx.evaluation.mil._report import LayerError, LogitError, Overflow, Verification, Way
from bitnet_onnx.evaluation.mil._subject import Functions, Ids, Progress, Reference, Subject
from bitnet_onnx.evaluation.mil._trial import try_out
from bitnet_onnx.evaluation.mil._weights import check_weights
from bitnet_onnx.evaluation.mil.interpreter import DEFAULT_ROOM, Interpreter, Mode
from bitnet_onnx.evaluation.mil.package import Package, open_package
from bitnet_onnx.evaluation.validation import DEFAULT_TOKENS, read_prompts
from bitnet_onnx.json_input import load_object, shown
from bitnet_onnx.package_format import TOKENIZER, TOKENIZER_CONFIG
from bitnet_onnx.runtime.package import special_tokens_of
from bitnet_onnx.runtime.tokenizer import TextTokenizer

#: Bytes of dense weights that are kept between calls.
_CACHE: Final = 1 << 30
#: Beside what strangers get, room for the caches of keys and values, and for one that is being changed.
_STATE_COPIES: Final = 4
_MAX_STATES: Final = 1 << 34
_MAX_CONFIG: Final = 1 << 24
#: Bits of activations that packages round.
_ROUNDED: Final = 8


@dataclass(frozen=True, slots=True)
class Options:
    """What to look at.

    Attributes:
        tokens: lengths of the prompts that are made up.
        prompt: a text to read instead of them.
        layers: layers to compare one by one; None and an empty tuple are all.
        float16: try half precision too.
        i2s_layout: of the I2_S matrices of a source that is a GGUF file, as for `convert`.
    """

    tokens: tuple[int, ...] = DEFAULT_TOKENS
    prompt: str | None = None
    layers: tuple[int, ...] | None = None
    float16: bool = False
    i2s_layout: str | None = None


def verify(
    package: str | Path,
    source: str | Path | None = None,
    options: Options | None = None,
    *,
    progress: Progress | None = None,
) -> Verification:
    """Run a saved package, and compare it with the checkpoint that it was made from.

    Args:
        package: the `.mlpackage`.
        source: the checkpoint; None for packages of others, which are only run, as far as their operations are known.
        options: what to compare.
        progress: called as it goes.

    Raises:
        InputError: one of the two cannot be read, they are of different models, or an option is impossible.
        UnsupportedError: an operation of the package is not known here.
    """
    chosen, report = options or Options(), progress or _silent
    with open_package(Path(package)) as opened:
        _check_known(opened)
        if source is None:
            return try_out(opened, float16=chosen.float16)
        with _source(Path(source), _manifest(opened).context, chosen.i2s_layout) as model:
            return compare(opened, model, chosen, progress=report)


def _silent(_: str, __: int, ___: int) -> None:
    """No progress."""


def _manifest(package: Package) -> Manifest:
    found = read_manifest(package.program)
    if found is None:
        raise PackageError(f"{package.path}: no package of ours, whose weights have names: leave out --source")
    return found


def _check_known(package: Package) -> None:
    interpreter = Interpreter(package)
    for name in package.program.functions:
        operation = interpreter.unknown(name)
        if operation is not None:
            raise UnsupportedError(
                f"{package.path}: function {shown(name)}: the operation {shown(operation.type)} of "
                f"{shown(operation.name)} is not known here"
            )


@contextmanager
def _source(path: Path, context: int, layout: str | None) -> Iterator[SourceModel]:
    """The source with the context of the package, which may decide how it rotates."""
    with open_model(path, i2s_layout=layout) as model:
        if model.spec.context_length == context:
            yield model
            return
    with open_model(path, context_length=context, i2s_layout=layout) as model:
        yield model


def compare(
    package: Package, model: SourceModel, options: Options, *, progress: Progress | None = None
) -> Verification:
    """Compare an open package of ours with the open model that it was made from, whose context is the package's.

    Raises:
        InputError: they are of different models, or an option is impossible.
    """
    spec, report, manifest = model.spec, progress or _silent, _manifest(package)
    manifest.check(spec)
    functions = Functions.of(package)
    prompts, layers = _prompts(options, model), _layers(options, spec.num_hidden_layers)
    matrices = PackageMatrices(package, functions.prefill)
    positions = (spec.learned_positions.offset if spec.learned_positions else 0, spec.context_length)
    warnings = _warnings(manifest, model)
    weights: list[WeightCheck] = []
    total = sum(1 for _ in spec.tensors())
    scaling = _scaling(package.path, manifest, model)
    for check in check_weights(spec, scaling.tensors(model.tensors), matrices, manifest, positions):
        weights.append(check)
        report("weights", len(weights), total)
    logits: list[LogitError] = []
    states: list[LayerError] = []
    overflows: list[Overflow] = []
    # Where tensors are missing or of a wrong kind nothing can be computed.
    if not any(check.problem for check in weights):
        decoder = PackageDecoder(matrices, dict(spec.tensors()), manifest.precisions, positions)
        reference = Reference(spec, decoder, prompts)
        reference.run(layers, report)
        room = DEFAULT_ROOM + _STATE_COPIES * _state_bytes(package, functions.prefill)
        subject = Subject(Interpreter(package, room=room, cache=_CACHE), functions, spec.vocab_size)
        logits, states = _wide(subject, reference, prompts, layers, report)
        if any(one.activation_bits == _ROUNDED for one in manifest.precisions.values()):
            plain = PackageDecoder(matrices, dict(spec.tensors()), manifest.precisions, positions, floats=True)
            logits += _floats(subject, Reference(spec, plain, prompts), prompts, report)
        overflows += subject.overflows
        # Its dense weights are not needed beside those of the other mode.
        del subject
        if options.float16:
            report("float16", 0, 1)
            half = Subject(Interpreter(package, Mode.FLOAT16, room=room, cache=_CACHE), functions, spec.vocab_size)
            logits += _half(half, reference, prompts)
            overflows += half.overflows
    return Verification(
        package=str(package.path),
        source=str(model.path),
        float16=options.float16,
        weights=tuple(weights),
        logits=tuple(logits),
        layers=tuple(states),
        overflows=tuple(overflows),
        warnings=warnings,
    )


def _wide(
    subject: Subject, reference: Reference, prompts: Sequence[Ids], layers: Sequence[int], report: Progress
) -> tuple[list[LogitError], list[LayerError]]:
    """Logits each way, and every layer on the input that it has in the package."""
    # A layer needs the states before it.
    kept = sorted({*layers, *(layer - 1 for layer in layers if layer)})
    whole = []
    for done, ids in enumerate(prompts):
        whole.append(subject.whole(ids, kept))
        report("package", done + 1, len(prompts))
    logits = reference.logits(Way.WHOLE, dict(enumerate(found for found, _ in whole)))
    longer = [place for place, ids in enumerate(prompts) if len(ids) > 1]
    logits += reference.logits(Way.CACHED, {place: subject.cached(prompts[place]) for place in longer})
    # What the mask adds does not depend on the prompt.
    shortest = sorted(longer, key=lambda place: len(prompts[place]))[:1]
    logits += reference.logits(Way.MASKED, {place: subject.whole(prompts[place], masked=True)[0] for place in shortest})
    states = []
    for layer in layers:
        before, after = kept.index(layer - 1) if layer else None, kept.index(layer)
        given = None if before is None else [hidden[before] for _, hidden in whole]
        states.append(reference.layer(layer, given, [hidden[after] for _, hidden in whole]))
        report("layers", len(states), len(layers))
    return logits, states


def _floats(subject: Subject, reference: Reference, prompts: Sequence[Ids], report: Progress) -> list[LogitError]:
    """Every prompt with activations that nothing rounds."""
    reference.run((), report)
    subject.interpreter.rounds = False
    found = {place: subject.whole(ids)[0] for place, ids in enumerate(prompts)}
    subject.interpreter.rounds = True
    return reference.logits(Way.FLOATS, found)


def _half(subject: Subject, reference: Reference, prompts: Sequence[Ids]) -> list[LogitError]:
    """Every prompt in half precision, and the longest in several calls."""
    whole = {place: subject.whole(ids)[0] for place, ids in enumerate(prompts)}
    longest = max(range(len(prompts)), key=lambda place: len(prompts[place]))
    cached = {longest: subject.cached(prompts[longest])} if len(prompts[longest]) > 1 else {}
    return [
        *reference.logits(Way.FLOAT16, whole, judged=False),
        *reference.logits(Way.FLOAT16_CACHED, cached, judged=False),
    ]


def _state_bytes(package: Package, function: str) -> int:
    states = Interpreter(package, room=_MAX_STATES).states(function)
    return sum(state.nbytes for state in states.values())


def _scaling(package: Path, manifest: Manifest, model: SourceModel) -> Scaling:
    """The scales of the package's inputs, which lie beside its tokenizer, as many as the manifest says."""
    if not manifest.scaled_inputs:
        return Scaling(model.spec, {})
    folder = package.with_suffix(TOKENIZER_SUFFIX)
    scaling = Scaling.open(folder, model.spec) if folder.is_dir() else Scaling(model.spec, {})
    if len(scaling.scales) != manifest.scaled_inputs:
        raise PackageError(
            f"{manifest.where}: scaled_inputs is {manifest.scaled_inputs}, {folder} has the scales of "
            f"{len(scaling.scales)}"
        )
    return scaling


def _prompts(options: Options, model: SourceModel) -> list[Ids]:
    def encode(text: str) -> Sequence[int]:
        return _tokenizer(model).encode(text, parse_special=False, add_bos=True)

    return read_prompts(options.prompt, options.tokens, model.spec, encode)


def _tokenizer(model: SourceModel) -> TextTokenizer:
    data = model.tokenizer.get(TOKENIZER)
    if data is None:
        raise InputError(f"--prompt: {model.path} has no {TOKENIZER}; give --tokens")
    path = model.path / TOKENIZER_CONFIG
    config = load_object(model.tokenizer.get(TOKENIZER_CONFIG, b"{}"), str(path), max_bytes=_MAX_CONFIG)
    return TextTokenizer.from_bytes(
        data,
        model.path / TOKENIZER,
        vocab_size=model.spec.vocab_size,
        bos_token=special_tokens_of(config, path).get("bos_token"),
        add_bos_token=config.get("add_bos_token") is True,
    )


def _layers(options: Options, count: int) -> tuple[int, ...]:
    for layer in options.layers or ():
        if not 0 <= layer < count:
            raise InputError(f"--layers holds {layer}: expected 0 to {count - 1}")
    return tuple(sorted(set(options.layers or range(count))))


def _warnings(manifest: Manifest, model: SourceModel) -> tuple[str, ...]:
    digest = model.sha256()
    if manifest.sha256 == digest:
        return ()
    line = (
        f"the package was made from weights with the sha256 {manifest.sha256:.64}, those of {model.path} have {digest}"
    )
    return (line,)
