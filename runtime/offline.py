"""Answers to a file of prompts: one JSON object a line in, one a line out, in the same order."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, Literal

from bitnet_onnx.errors import BitnetOnnxError, InputError
from bitnet_onnx.json_input import load_object, shown
from bitnet_onnx.package_format import MANIFEST
from bitnet_onnx.runtime.engine.engine import Engine, EngineSettings
from bitnet_onnx.runtime.engine.request import EngineRequest
from bitnet_onnx.runtime.engine.stream import AnswerStream
from bitnet_onnx.runtime.prompts import PromptEncoder
from bitnet_onnx.runtime.sampling import SamplingParameters

MAX_LINE_BYTES = 4 << 20
#: A context's worth of text and more.
_MAX_ANSWER_BYTES = 64 << 20
_PIECE = 1 << 16
_DIGEST_BYTES = 8
_MAX_ID_CHARACTERS = 256
_OVERRIDES = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop")
_FIELDS = frozenset({"id", "prompt", "messages", *_OVERRIDES})
#: Answers that may wait for one before them, as a multiple of the batch.
_AHEAD = 4


@dataclass(frozen=True, slots=True)
class PromptLine:
    """A line of the input.

    Attributes:
        number: from 1, empty lines counted.
        data: without the end of the line; None where it is longer than `MAX_LINE_BYTES`.
    """

    number: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class OfflineReport:
    """What was done: lines answered now, of these with an error, lines that were answered before, tokens generated."""

    answered: int
    failed: int
    kept: int
    generated_tokens: int


@dataclass(frozen=True, slots=True)
class AnsweredLine:
    """A line of the output.

    Attributes:
        number: of the line that it answers.
        data: JSON, with the end of the line.
        failed: whether it tells an error.
        generated_tokens: of the answer.
    """

    number: int
    data: bytes
    failed: bool
    generated_tokens: int


def read_lines(file: BinaryIO, number: int = 0) -> Iterator[PromptLine]:
    """The lines of a file that are not empty, in memory bounded by `MAX_LINE_BYTES`; `number` were read before."""
    while data := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(data) > MAX_LINE_BYTES and not data.endswith(b"\n"):
            while (rest := file.readline(_PIECE)) and not rest.endswith(b"\n"):
                pass
            yield PromptLine(number, None)
        elif data.strip():
            yield PromptLine(number, data.rstrip(b"\r\n"))


def parse_line(line: PromptLine, prompts: PromptEncoder, parameters: SamplingParameters) -> EngineRequest:
    """The request of a line: `{"prompt": ...}` or `{"messages": [...]}`, perhaps with sampling parameters of its own.

    Raises:
        InputError: the line is too long, not a JSON object, or has a field that is unknown, missing or wrong.
    """
    if line.data is None:
        raise InputError(f"longer than the limit of {MAX_LINE_BYTES} bytes")
    fields = load_object(line.data, f"line {line.number}", max_bytes=MAX_LINE_BYTES)
    _check_id(fields.get("id"))
    if unknown := sorted(fields.keys() - _FIELDS):
        raise InputError(f"unknown field {shown(unknown[0])}; known are {', '.join(sorted(_FIELDS))}")
    if ("prompt" in fields) == ("messages" in fields):
        raise InputError("expected either prompt or messages")
    changes = {name: fields[name] for name in _OVERRIDES if name in fields}
    if isinstance(stop := changes.get("stop"), list | str):
        changes["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    # As many lines as one asks alike shall not all get one answer.
    seed = None if parameters.seed is None else parameters.seed + line.number - 1
    chosen = replace(parameters, seed=seed)
    chosen = replace(chosen, **changes)  # type: ignore[arg-type]  # checked by SamplingParameters
    messages = fields.get("messages")
    if messages is not None and not (isinstance(messages, list) and messages and isinstance(messages[0], dict)):
        raise InputError("messages is not a list of objects with role and content")
    prompt = fields["prompt"] if messages is None else messages
    if messages is None and not isinstance(prompt, str | list):
        raise InputError("prompt is neither a text nor a list of token ids")
    ids = prompts.encode(prompt)  # type: ignore[arg-type]  # what is in the list is checked there
    return EngineRequest(tuple(ids), chosen, continues_text=messages is None)


def write_answers(
    engine: Engine,
    prompts: PromptEncoder,
    source: Path,
    out: Path,
    parameters: SamplingParameters,
    *,
    salt: bytes = b"",
) -> OfflineReport:
    """Answers every line of `source` with a line of `out`, in order, each once.

    An answer is `{"line", "id", "text", "finish_reason", "prompt_tokens", "completion_tokens", "digest"}`; a line that
    cannot be answered gets `{"line", "id", "error", "digest"}` in its place. What `out` has already is kept, once its
    digests agree with the lines, the parameters and `salt`; a last line that was torn is cut off.

    Args:
        engine: started.
        prompts: the text side of the engine's package.
        source: the prompts.
        out: is made, or continued.
        parameters: of all lines that do not say otherwise; line n gets the seed plus n - 1.
        salt: what else the answers depend on, such as the package.

    Raises:
        InputError: a file cannot be read or written, or `out` holds other answers.
        BitnetOnnxError: the engine died; what was answered stands in `out`.
    """
    salt = salt_of(salt, parameters)
    with continued(source, out, salt) as answers:
        todo = read_lines(answers.lines, answers.number)
        return answers.write(answer_lines(engine, prompts, todo, parameters, salt=salt))


def package_salt(package: Path, settings: EngineSettings) -> bytes:
    """What answers depend on beside their parameters: the package, and what it is told to round."""
    salt = (package / MANIFEST).read_bytes()
    if settings.activation_bits is not None:
        salt += b"activations %d" % settings.activation_bits
    return salt + (b"" if settings.kv == "float32" else settings.kv.encode())


def salt_of(package: bytes, parameters: SamplingParameters) -> bytes:
    """What all answers depend on, for the digests."""
    return package + repr(parameters).encode()


class ContinuedAnswers:
    """An output that is made or continued; `continued` opens it.

    Attributes:
        lines: the input, behind the last line that is answered already.
        number: lines before that place, empty ones counted.
        kept: answers that the output holds already.
    """

    def __init__(self, lines: BinaryIO, answers: BinaryIO, out: Path, number: int, kept: int) -> None:
        self.lines = lines
        self.number = number
        self.kept = kept
        self._answers = answers
        self._out = out

    def write(self, answered: Iterable[AnsweredLine]) -> OfflineReport:
        """Writes answers as they come.

        Raises:
            BitnetOnnxError: what makes them failed; what came before stands in the file.
        """
        count = failed = generated = 0
        try:
            for line in answered:
                # One write, so that what is torn is torn at the end.
                self._answers.write(line.data)
                self._answers.flush()
                count += 1
                failed += line.failed
                generated += line.generated_tokens
        except BitnetOnnxError as error:
            raise BitnetOnnxError(f"{self._out}: {error}; run it again to go on") from error
        return OfflineReport(count, failed, self.kept, generated)


@contextmanager
def continued(source: Path, out: Path, salt: bytes) -> Iterator[ContinuedAnswers]:
    """The answers of `source` in `out`, after a check of those that are there.

    Raises:
        InputError: a file cannot be read or written, or `out` holds other answers.
    """
    if out.exists() and source.exists() and out.samefile(source):
        raise InputError(f"{out}: the answers would overwrite the prompts; name another file")
    with _opened(source, "rb") as lines, _opened(out, "a+b") as answers:
        number, kept = _resume(lines, answers, source, out, salt)
        yield ContinuedAnswers(lines, answers, out, number, kept)


def _opened(path: Path, mode: Literal["rb", "a+b"]) -> BinaryIO:
    try:
        return path.open(mode)
    except OSError as error:
        raise InputError(f"{path}: cannot be opened: {error.strerror or error}") from error


def answer_lines(
    engine: Engine,
    prompts: PromptEncoder,
    todo: Iterable[PromptLine],
    parameters: SamplingParameters,
    *,
    salt: bytes,
) -> Iterator[AnsweredLine]:
    """Answers to lines in their order, as many at a time as the engine takes.

    Raises:
        BitnetOnnxError: the engine died.
    """
    lines = iter(todo)
    ahead: deque[tuple[PromptLine, AnswerStream | BitnetOnnxError]] = deque()
    limit = min(engine.settings.max_batch * _AHEAD, engine.settings.max_queue)
    more = True
    while more or ahead:
        while more and len(ahead) < limit:
            line = next(lines, None)
            more = line is not None
            if line is not None:
                ahead.append((line, _submit(engine, prompts, line, parameters)))
        if ahead:
            yield _answered(engine, *ahead.popleft(), salt)


def _answered(engine: Engine, line: PromptLine, outcome: AnswerStream | BitnetOnnxError, salt: bytes) -> AnsweredLine:
    generated = 0
    if isinstance(outcome, AnswerStream):
        text, ids, finished = outcome.result()
        if finished.reason == "cancelled" or (finished.error is not None and not engine.healthy):
            raise BitnetOnnxError(f"ends before line {line.number}: {finished.error or 'the engine was closed'}")
        generated = len(ids)
        fields: dict[str, object] = {"text": text, "finish_reason": finished.reason}
        if finished.error is not None:
            fields = {"error": str(finished.error)}
        else:
            fields |= {"prompt_tokens": finished.prompt_tokens, "completion_tokens": finished.completion_tokens}
    else:
        fields = {"error": str(outcome)}
    record = {"line": line.number, "id": _id_of(line), **fields, "digest": _digest(line, salt)}
    data = json.dumps(record, separators=(",", ":")).encode("ascii") + b"\n"
    return AnsweredLine(line.number, data, "error" in fields, generated)


def _submit(
    engine: Engine, prompts: PromptEncoder, line: PromptLine, parameters: SamplingParameters
) -> AnswerStream | BitnetOnnxError:
    try:
        request = parse_line(line, prompts, parameters)
    except BitnetOnnxError as error:
        return error
    return engine.submit(request)


def _resume(lines: BinaryIO, answers: BinaryIO, source: Path, out: Path, salt: bytes) -> tuple[int, int]:
    """Skips the lines that are answered already, cuts a torn end off, and leaves `answers` at its end.

    Returns:
        The number of the last line that is answered, and how many are.
    """
    todo = read_lines(lines)
    answers.seek(0)
    number = kept = end = 0
    while data := answers.readline(_MAX_ANSWER_BYTES):
        if not data.endswith(b"\n"):
            break
        try:
            found = load_object(data, f"{out}: line {kept + 1}", max_bytes=_MAX_ANSWER_BYTES)
        except InputError:
            if not answers.read(1):
                # A crash of the system may leave a line of zeros.
                break
            raise
        line = next(todo, None)
        if line is None:
            raise InputError(f"{out}: line {kept + 1} answers nothing: {source} ends before; name another file")
        if found.get("line") != line.number or found.get("digest") != _digest(line, salt):
            raise InputError(
                f"{out}: line {kept + 1} is no answer to line {line.number} of {source} with this package and these "
                f"options; name another file, or remove this one"
            )
        kept += 1
        number = line.number
        end = answers.tell()
    answers.truncate(end)
    answers.seek(0, os.SEEK_END)
    return number, kept


def _digest(line: PromptLine, salt: bytes) -> str:
    data = blake2b(salt, digest_size=_DIGEST_BYTES)
    data.update(b"too long" if line.data is None else b"\n" + line.data)
    return data.hexdigest()


def _id_of(line: PromptLine) -> str | int | None:
    """The line's own name, as far as it can be read."""
    try:
        value = load_object(line.data or b"", "", max_bytes=MAX_LINE_BYTES).get("id")
        return _check_id(value)
    except InputError:
        return None


def _check_id(value: object) -> str | int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, str) and len(value) <= _MAX_ID_CHARACTERS:
        return value
    raise InputError(f"id is {value!r:.40}, expected an integer or a text of at most {_MAX_ID_CHARACTERS} characters")
