"""The quality of a package: on texts, against a reference, on questions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bitnet_onnx.activations import check_activation_bits
from bitnet_onnx.converters.onnx.package import tool_version
from bitnet_onnx.errors import InputError
from bitnet_onnx.evaluation._logits import Progress
from bitnet_onnx.evaluation.quality._reader import WindowReader
from bitnet_onnx.evaluation.quality._reference import Reference, open_reference
from bitnet_onnx.evaluation.quality._windows_measured import Sums
from bitnet_onnx.evaluation.quality.perplexity import check_windows, score_text
from bitnet_onnx.evaluation.quality.result import Quality, Subject, TextQuality
from bitnet_onnx.evaluation.quality.task_file import count_questions
from bitnet_onnx.evaluation.quality.tasks import beginning_token, score_tasks
from bitnet_onnx.evaluation.quality.text import TokenText, read_text, tokenize
from bitnet_onnx.evaluation.quality.windows import WindowRule
from bitnet_onnx.package_format import MANIFEST, MODEL_DATA
from bitnet_onnx.runtime import Device, PackageInfo, select_device
from bitnet_onnx.runtime._json import read_object
from bitnet_onnx.runtime.devices import runtime_name
from bitnet_onnx.runtime.tokenizer import TextTokenizer

_RULE: Final = WindowRule()
_HASHED: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class QualityOptions:
    """How to evaluate.

    Attributes:
        rule: which tokens of a text are scored.
        activation_bits: of the package's linear layers, see `bitnet_onnx.load`; the reference stays as it is.
        threads: of one operator; None: as many as there are physical cores.
        device: where it runs; None: `select_device()`.
    """

    rule: WindowRule = _RULE
    activation_bits: int | None = None
    threads: int | None = None
    device: Device | None = None


def evaluate(
    package: str | Path,
    *,
    texts: Sequence[str | Path] = (),
    tasks: Sequence[str | Path] = (),
    reference: str | Path | None = None,
    options: QualityOptions | None = None,
    progress: Progress | None = None,
) -> Quality:
    """Measure the quality of a package.

    Args:
        package: the package directory.
        texts: UTF-8 files to score.
        tasks: files of multiple-choice questions, see `task_file`.
        reference: a package or a checkpoint of the same vocabulary to compare with; a checkpoint is converted to
            float32 in a temporary directory, which is removed.
        options: how.
        progress: called as it goes.

    Raises:
        InputError: a file cannot be used, or an option is impossible; its subclasses tell of the package and the
            reference.
        BitnetOnnxError: a model cannot be run, or gives logits that are not finite.
    """
    options = options or QualityOptions()
    rule = options.rule
    if not texts and not tasks:
        raise InputError("nothing to evaluate: give a text, or a file of questions")
    if options.activation_bits is not None:
        check_activation_bits(options.activation_bits)
    info = PackageInfo.open(package)
    if texts and rule.length > info.architecture.context_length:
        raise InputError(
            f"a window of {rule.length} tokens does not fit the model's context of {info.architecture.context_length}"
        )
    counts = [count_questions(Path(path)) for path in tasks]
    cut = _tokenized(info, [Path(path) for path in texts], rule)
    device = options.device or select_device(info.operators)
    with ExitStack() as stack:
        compared: Reference | None = None
        other: WindowReader | None = None
        reader = WindowReader(info, device, threads=options.threads, activation_bits=options.activation_bits)
        if reference is not None:
            compared = stack.enter_context(open_reference(Path(reference), info, progress))
            if texts and rule.length > compared.info.architecture.context_length:
                raise InputError(
                    f"a window of {rule.length} tokens does not fit the reference's context of "
                    f"{compared.info.architecture.context_length}"
                )
            other = WindowReader(
                compared.info, options.device or select_device(compared.info.operators), threads=options.threads
            )
        beginning = _beginning(info, reader) if rule.beginning else None
        sums: list[Sums] = []
        for text in cut:
            sums += score_text(text, rule, [reader], other, beginning=beginning, progress=progress)
        answered = [
            score_tasks(Path(path), count, reader, other, progress) for path, count in zip(tasks, counts, strict=True)
        ]
        return Quality(
            package=_subject(info, Path(package), options.activation_bits),
            reference=None if compared is None else _subject(compared.info, compared.path, None, compared.converted),
            rule=rule if cut else None,
            texts=tuple(TextQuality.of(text.name, [one]) for text, one in zip(cut, sums, strict=True)),
            total=TextQuality.of("all", sums) if cut else None,
            tasks=tuple(answered),
            tool_version=tool_version(),
            runtime=runtime_name(info.operators, device),
        )


def _tokenized(info: PackageInfo, paths: Sequence[Path], rule: WindowRule) -> list[TokenText]:
    if not paths:
        return []
    tokenizer = TextTokenizer(info)
    texts = [tokenize(read_text(path), tokenizer, str(path)) for path in paths]
    check_windows(texts, rule)
    return texts


def _beginning(info: PackageInfo, reader: WindowReader) -> int:
    token = beginning_token(reader, TextTokenizer(info))
    if token is None:
        raise InputError(f"{info.directory}: the model has no token for a beginning; score without one")
    return token


def _subject(info: PackageInfo, path: Path, activation_bits: int | None, converted: str = "") -> Subject:
    manifest = read_object(info.directory / MANIFEST)
    source, summary = (_object(manifest.get(name)) for name in ("source", "summary"))
    bits = summary.get("bits_per_weight")
    names = {None: "as packaged", 0: "float"}
    return Subject(
        path=str(path),
        name=str(source.get("name", "")),
        source_sha256=str(source.get("sha256", "")),
        sha256=_sha256(info),
        bits_per_weight=float(bits) if isinstance(bits, int | float) else None,
        activations=names.get(activation_bits, str(activation_bits)),
        converted=converted,
    )


def _object(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _sha256(info: PackageInfo) -> str:
    """Of the graph that is run, followed by its data."""
    digest = hashlib.sha256()
    for path in (info.engine_path or info.model_path, info.directory / MODEL_DATA):
        with path.open("rb") as file:
            while block := file.read(_HASHED):
                digest.update(block)
    return digest.hexdigest()
