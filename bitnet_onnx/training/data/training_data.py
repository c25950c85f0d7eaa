"""The data of a run: from files to batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bitnet_onnx.calibration.windows import text_size
from bitnet_onnx.errors import InputError
from bitnet_onnx.training.data._sources import Chat, holdout_start, read_parts
from bitnet_onnx.training.data._tokenization import Part, file_digest, open_tokens
from bitnet_onnx.training.data.cache import TokenFile
from bitnet_onnx.training.data.tokenizer import DataTokenizer
from bitnet_onnx.training.data.windows import TokenStream, TokenWindows, ValidationWindows
from bitnet_onnx.training.settings import DataSettings

_MAX_HOLDOUT: Final = 0.5
_MAX_LENGTH: Final = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class TrainingData:
    """What a run reads.

    Attributes:
        train: without end.
        validation: None where no file and no holdout is for it.
    """

    train: TokenStream
    validation: ValidationWindows | None


def open_data(
    settings: DataSettings,
    tokenizer: DataTokenizer,
    *,
    seed: int,
    rank: int = 0,
    size: int = 1,
    cache: Path,
    progress: Callable[[int, int], None] | None = None,
) -> TrainingData:
    """Tokenize what is not in the cache yet, and open it.

    Every file is read once for its digest, by which its tokens are found again. Of several workers one should come
    here first: each writes what it does not find.

    Args:
        settings: what is read; `settings.cache` goes before `cache`.
        tokenizer: of the model.
        seed: of the order.
        rank: of this worker.
        size: how many workers there are.
        cache: a directory for tokens.
        progress: called with the bytes that are done, and of all files.

    Raises:
        InputError: a setting is impossible, a file is wrong or gives no window, or the cache cannot be written.
    """
    check_settings(settings)
    folder = settings.cache or cache
    sizes = {path: text_size(path) for path in (*settings.train, *settings.validation)}
    total, done = sum(sizes.values()), 0

    def opened(part: Part) -> TokenFile:
        nonlocal done
        before = done

        def report(count: int) -> None:
            if progress is not None:
                progress(before + count, total)

        found = open_tokens(part, tokenizer, folder, answers_only=settings.answers_only, progress=report)
        done += part.size
        return found

    train, validation = [], []
    for path in settings.train:
        digest, start = file_digest(path), holdout_start(path, settings.holdout)
        train.append(opened(Part(path, digest, 0, start)))
        if start < sizes[path]:
            validation.append(opened(Part(path, digest, start, sizes[path])))
    validation += [opened(Part(path, file_digest(path), 0, sizes[path])) for path in settings.validation]
    # More than one token cannot be put in front of a window without shifting its labels.
    beginning = tokenizer.beginning[0] if len(tokenizer.beginning) == 1 else None
    stream = TokenStream(_windows(train, settings.length, beginning, "training"), seed=seed, rank=rank, size=size)
    if not validation:
        return TrainingData(stream, None)
    windows = _windows(validation, settings.length, beginning, "validation")
    return TrainingData(stream, ValidationWindows(windows, rank=rank, size=size))


def read_texts(settings: DataSettings) -> Iterator[str]:
    """The text that is trained on, in pieces: documents, and of chats the messages; no validation text.

    Raises:
        InputError: a setting is impossible, or a file is wrong.
    """
    check_settings(settings)
    for path in settings.train:
        for part, _ in read_parts(path, 0, holdout_start(path, settings.holdout)):
            if isinstance(part, Chat):
                yield from (message.content for message in part.messages)
            else:
                yield part.text


def check_settings(settings: DataSettings) -> None:
    """Refuse what cannot be read, before anything is.

    Raises:
        InputError: a number is out of its range, or a file does not exist.
    """
    if not settings.train:
        raise InputError("data.train names no file")
    if not 0 <= settings.holdout <= _MAX_HOLDOUT:
        raise InputError(f"data.holdout is {settings.holdout}, expected 0 to {_MAX_HOLDOUT}")
    if not 1 <= settings.length <= _MAX_LENGTH:
        raise InputError(f"data.length is {settings.length}, expected 1 to {_MAX_LENGTH}")
    for path in (*settings.train, *settings.validation):
        text_size(path)


def _windows(files: list[TokenFile], length: int, beginning: int | None, name: str) -> TokenWindows:
    windows = TokenWindows(files, length, beginning)
    if not len(windows):
        names = ", ".join(dict.fromkeys(str(file.source) for file in files))
        raise InputError(
            f"{names:.500}: {windows.counts.tokens} tokens, {windows.counts.learned} of them learned, give no {name} "
            f"window of {length}; give more text or a smaller data.length"
        )
    return windows
