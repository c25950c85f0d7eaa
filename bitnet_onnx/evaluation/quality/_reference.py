"""What a package is compared with: another package, or a checkpoint made into one for the time being."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bitnet_onnx.converters import convert
from bitnet_onnx.converters.model import open_model
from bitnet_onnx.errors import InputError
from bitnet_onnx.evaluation._context import context_to_open
from bitnet_onnx.evaluation._logits import Progress
from bitnet_onnx.json_input import shown
from bitnet_onnx.package_format import MANIFEST
from bitnet_onnx.policy import Policy, Precision, Weights
from bitnet_onnx.runtime import PackageInfo
from bitnet_onnx.runtime.tokenizer import TextTokenizer

_FLOAT: Final = Precision(Weights.FLOAT32)
_STAGE: Final = "converting the reference"


@dataclass(frozen=True, slots=True)
class Reference:
    """A package that stands for what the user named.

    Attributes:
        info: the package.
        path: what was named.
        converted: to what precision; empty where a package was named.
    """

    info: PackageInfo
    path: Path
    converted: str


@contextmanager
def open_reference(path: Path, package: PackageInfo, progress: Progress | None) -> Iterator[Reference]:
    """A package to compare `package` with; what is converted for it is gone afterwards.

    A checkpoint becomes float32 throughout; one that was trained with ternary weights keeps these, since in floats it
    would be another model, and has a float32 head.

    Raises:
        InputError: the path is no checkpoint and no package, or the vocabularies differ.
    """
    if (path / MANIFEST).exists():
        info = PackageInfo.open(path)
        check_vocabulary(package, info)
        yield Reference(info, path, "")
        return
    with tempfile.TemporaryDirectory(prefix="bitnet-onnx-reference-") as folder:
        context = context_to_open(path, None, package)
        with open_model(path, context_length=context) as model:
            trained = model.trained_ternary
        output = Path(folder, "package")
        convert(
            path,
            output,
            policy=Policy(Precision(Weights.AUTO) if trained else _FLOAT, _FLOAT),
            context_length=context,
            progress=None if progress is None else lambda done, total, _: progress(_STAGE, done, total),
        )
        info = PackageInfo.open(output)
        check_vocabulary(package, info)
        yield Reference(info, path, "ternary blocks, float32 head" if trained else "float32")


def check_vocabulary(package: PackageInfo, reference: PackageInfo) -> None:
    """Refuse two packages whose token ids mean different things.

    Raises:
        InputError: naming the first difference.
    """
    mine, other = (one.architecture.vocab_size for one in (package, reference))
    if mine != other:
        raise InputError(
            f"{package.directory} has a vocabulary of {mine} tokens, its reference one of {other}: "
            f"only models of one vocabulary can be compared"
        )
    tokens, others = (_vocabulary(one) for one in (package, reference))
    if tokens != others:
        text = min(token for token in tokens.keys() | others.keys() if tokens.get(token) != others.get(token))
        raise InputError(
            f"{package.directory} has the token {shown(text)} as {tokens.get(text)}, its reference as "
            f"{others.get(text)}: only models of one vocabulary can be compared"
        )


def _vocabulary(package: PackageInfo) -> dict[str, int]:
    tokens: dict[str, int] = TextTokenizer(package).inner.get_vocab(with_added_tokens=True)
    return tokens
