"""Whether a tokenizer.json can be used at all, and whether its ids exist in the model."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from bitnet_onnx.errors import CheckpointError
from bitnet_onnx.json_input import load_object, shown
from bitnet_onnx.limited_process import Limits, ProcessEndedError, run_limited

_WORKER = Path(__file__).with_name("_tokenizer_worker.py")
_LIMITS = Limits(megabytes=900, seconds=8)


def check_tokenizer(data: bytes, source: str, vocab_size: object) -> None:
    """Load a `tokenizer.json` that was written here and compare its ids with the rows of the embedding.

    Raises:
        CheckpointError: it does not load, or an id is `vocab_size` or more.
    """
    try:
        tokenizer = Tokenizer.from_str(data.decode("utf-8"))
        vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{source}: byte {error.start} is not UTF-8") from error
    except BaseException as error:
        # The library raises plain Exception, and a panic of its Rust code is a BaseException of its own.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"{source}: not a usable tokenizer: {shown(str(error))}") from error
    if not vocabulary:
        raise CheckpointError(f"{source}: the vocabulary is empty")
    token, highest = max(vocabulary.items(), key=lambda item: item[1])
    _check_rows(source, token, highest, vocab_size)


def check_foreign_tokenizer(data: bytes, source: str, vocab_size: object) -> None:
    """The same for a file that somebody else wrote: loaded in a process of its own, which it may exhaust or end.

    Raises:
        CheckpointError: it is no bounded JSON, does not load within the limits of time and memory, or an id is
            `vocab_size` or more.
    """
    load_object(data, source, max_bytes=len(data), error=CheckpointError)
    try:
        answer = run_limited(_WORKER, data, _LIMITS)
    except ProcessEndedError:
        raise CheckpointError(
            f"{source}: not a usable tokenizer: loading it takes over {_LIMITS.seconds} s or {_LIMITS.megabytes} MB, "
            "or ends the process"
        ) from None
    if "error" in answer:
        raise CheckpointError(f"{source}: not a usable tokenizer: {shown(str(answer['error']))}")
    if answer["id"] is None:
        raise CheckpointError(f"{source}: the vocabulary is empty")
    _check_rows(source, answer["token"], answer["id"], vocab_size)


def _check_rows(source: str, token: str, highest: int, vocab_size: object) -> None:
    if isinstance(vocab_size, int) and highest >= vocab_size:
        raise CheckpointError(
            f"{source}: token {shown(token)} has id {highest}, but the model has {vocab_size} rows (vocab_size); "
            "resize the embeddings or remove the token"
        )
