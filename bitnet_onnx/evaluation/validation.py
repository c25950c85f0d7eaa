"""Does a package hold the source's weights, and does it compute what they say?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bitnet_onnx.converters._package_blocks import matrix_reader
from bitnet_onnx.converters._package_graph import read_graph
from bitnet_onnx.converters._package_matrices import NamedArrays
from bitnet_onnx.converters._package_tensors import PackageTensors
from bitnet_onnx.converters._scaling import Scaling
from bitnet_onnx.converters.checkpoints._files import BinaryFile
from bitnet_onnx.converters.model import SourceModel, open_model
from bitnet_onnx.converters.onnx._head_layout import head_size
from bitnet_onnx.decoder import MANIFEST_SIZES, DecoderSpec
from bitnet_onnx.errors import InputError, PackageError
from bitnet_onnx.evaluation._context import context_to_open
from bitnet_onnx.evaluation._engine import engine_differences
from bitnet_onnx.evaluation._logits import Ids, Progress, Subject, check_linear_layers, check_logits
from bitnet_onnx.evaluation._report import LayerCheck, LogitCheck, OperatorCheck, Validation, WeightCheck
from bitnet_onnx.evaluation._weights import check_weights, recorded_errors, recorded_precisions
from bitnet_onnx.package_format import MANIFEST, MODEL, MODEL_DATA, SCALING
from bitnet_onnx.runtime import Device, PackageInfo, select_device
from bitnet_onnx.runtime._json import read_object
from bitnet_onnx.runtime.devices import runtime_name
from bitnet_onnx.runtime.tokenizer import TextTokenizer

#: Tokens of the prompts that are made up where the user gives none.
DEFAULT_TOKENS: Final = (1, 7, 64)
#: Steps through the vocabulary of the prompts that are made up, and where they begin.
_STRIDE, _START = 7919, 1009


@dataclass(frozen=True, slots=True)
class Options:
    """What to validate.

    Attributes:
        tokens: lengths of the prompts that are made up.
        prompt: a text to read instead of them.
        layers: hidden states to compare; None is none, and an empty tuple is those of all layers.
        fallback: run the function bodies although the operator library is there.
        i2s_layout: of the I2_S matrices of a source that is a GGUF file, as for `convert`.
    """

    tokens: tuple[int, ...] = DEFAULT_TOKENS
    prompt: str | None = None
    layers: tuple[int, ...] | None = None
    fallback: bool = False
    i2s_layout: str | None = None


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
    chosen, report = options or Options(), progress or _silent
    info = PackageInfo.open(package)
    path = str(info.directory / MANIFEST)
    manifest = read_object(info.directory / MANIFEST)
    layout = chosen.i2s_layout
    context = context_to_open(Path(source), layout, info)
    with (
        open_model(Path(source), context_length=context, i2s_layout=layout) as model,
        BinaryFile(info.directory / MODEL) as graph,
        BinaryFile(info.directory / MODEL_DATA) as data,
    ):
        _check_sizes(model.spec, manifest, path)
        arrays = read_graph(graph, data)
        named = NamedArrays(str(info.directory), arrays)
        reader = matrix_reader(named, manifest, info.directory / MANIFEST, model.spec)
        subject = Subject(
            info=info,
            graph=arrays,
            tensors=PackageTensors(named, model.spec, reader),
            precisions=recorded_precisions(manifest, model.spec, path),
            errors=recorded_errors(manifest),
            fallback=_fallback(manifest),
            device=Device() if chosen.fallback else select_device(info.operators),
            source=model,
            scaling=_scaling(info.directory, model.spec, manifest),
        )
        prompts, layers = _prompts(chosen, info, model.spec), _layers(chosen, model.spec.num_hidden_layers)
        weights = _weights(subject, report)
        logits: tuple[LogitCheck, ...] = ()
        states: tuple[LayerCheck, ...] = ()
        operators: tuple[OperatorCheck, ...] = ()
        # Where tensors are missing or of a wrong kind nothing can be computed.
        if not any(check.problem for check in weights):
            logits, states = check_logits(subject, prompts, layers, report)
            operators = check_linear_layers(subject, prompts[-1])
        return Validation(
            package=str(info.directory),
            source=str(model.path),
            runtime=_runtime(subject),
            weights=(*weights, *engine_differences(info.directory)),
            logits=logits,
            operators=operators,
            layers=states,
            warnings=_warnings(model, manifest),
        )


def made_up(length: int, vocab_size: int) -> Ids:
    """Token ids that are the same on every machine."""
    return tuple((_START + _STRIDE * index) % vocab_size for index in range(length))


def _silent(_: str, __: int, ___: int) -> None:
    """No progress."""


def _weights(subject: Subject, report: Progress) -> tuple[WeightCheck, ...]:
    source = subject.source
    total = sum(1 for _ in source.spec.tensors())
    checks: list[WeightCheck] = []
    tensors = subject.scaling.tensors(source.tensors)
    for check in check_weights(source.spec, tensors, subject.tensors, subject.precisions, subject.errors):
        checks.append(check)
        report("weights", len(checks), total)
    return tuple(checks)


def _runtime(subject: Subject) -> str:
    name = runtime_name(subject.info.operators, subject.device)
    return f"{subject.fallback} {name}" if name == "function bodies" else name


def read_prompts(
    prompt: str | None, tokens: Sequence[int], spec: DecoderSpec, encode: Callable[[str], Sequence[int]]
) -> list[Ids]:
    """Token ids of the prompts to read.

    Args:
        prompt: a text, or None.
        tokens: lengths of the prompts that are made up without one.
        spec: whose context and vocabulary they fit.
        encode: gives the ids of a text.

    Raises:
        InputError: there is none, or one does not fit.
    """
    if prompt is not None:
        ids = encode(prompt)
        if not 1 <= len(ids) <= spec.context_length:
            raise InputError(f"--prompt has {len(ids)} tokens: expected 1 to {spec.context_length}")
        return [tuple(ids)]
    if not tokens:
        raise InputError("--tokens names no prompt: give at least one length")
    for length in tokens:
        if not 1 <= length <= spec.context_length:
            raise InputError(f"--tokens holds {length}: expected 1 to {spec.context_length}, the context")
    return [made_up(length, spec.vocab_size) for length in tokens]


def _prompts(options: Options, info: PackageInfo, spec: DecoderSpec) -> list[Ids]:
    def encode(text: str) -> Sequence[int]:
        return TextTokenizer(info).encode(text, parse_special=False, add_bos=True)

    return read_prompts(options.prompt, options.tokens, spec, encode)


def _layers(options: Options, count: int) -> tuple[int, ...]:
    if options.layers is None:
        return ()
    for layer in options.layers:
        if not 0 <= layer < count:
            raise InputError(f"--layers holds {layer}: expected 0 to {count - 1}")
    return options.layers or tuple(range(count))


def _check_sizes(spec: DecoderSpec, manifest: Mapping[str, object], path: str) -> None:
    architecture = manifest.get("architecture")
    recorded = architecture if isinstance(architecture, dict) else {}
    expected = {**{name: getattr(spec, name) for name in MANIFEST_SIZES}, "head_dim": head_size(spec)}
    for name, size in expected.items():
        if recorded.get(name) != size:
            raise PackageError(
                f"{path}: {name} is {recorded.get(name)!r:.40}, that of the source is {size}: "
                f"the package was made from another model"
            )


def _scaling(directory: Path, spec: DecoderSpec, manifest: Mapping[str, object]) -> Scaling:
    """The scales of the package's inputs, as many as the manifest says."""
    scaling = Scaling.open(directory, spec)
    summary = manifest.get("summary")
    recorded = summary.get("scaled_inputs", 0) if isinstance(summary, dict) else 0
    if recorded != len(scaling.scales):
        raise PackageError(
            f"{directory / MANIFEST}: summary.scaled_inputs is {recorded!r:.40}, {SCALING} has {len(scaling.scales)}"
        )
    return scaling


def _fallback(manifest: Mapping[str, object]) -> str:
    operator = manifest.get("operator")
    return "exact" if isinstance(operator, dict) and operator.get("fallback") == "exact" else "fast"


def _warnings(model: SourceModel, manifest: Mapping[str, object]) -> tuple[str, ...]:
    source = manifest.get("source")
    recorded = source.get("sha256") if isinstance(source, dict) else None
    digest = model.sha256()
    if recorded == digest:
        return ()
    line = f"the package was made from weights with the sha256 {recorded!s:.64}, those of {model.path} have {digest}"
    return (line,)
