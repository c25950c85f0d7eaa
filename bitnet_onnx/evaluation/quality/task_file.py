"""Multiple-choice questions in a file: one JSON object a line, in the forms that harnesses use.

A line has a context, choices and the right one, each under one of the names below; other fields are ignored.

- `query`, `ctx` or `question`: text, may be empty.
- `choices` or `endings`: a list of texts, or `{"text": [...], "label": [...]}` as ARC has it.
- `gold`, `label`, `answer` or `answerKey`: the index from 0, as a number or in digits; a letter, A being the first; or
  one of the labels, where there are any.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bitnet_onnx.errors import InputError
from bitnet_onnx.json_input import load_object
from bitnet_onnx.runtime.offline import MAX_LINE_BYTES, read_lines

CONTEXTS: Final = ("query", "ctx", "question")
CHOICES: Final = ("choices", "endings")
ANSWERS: Final = ("gold", "label", "answer", "answerKey")
MAX_CHOICES: Final = 256


@dataclass(frozen=True, slots=True)
class Question:
    """A question.

    Attributes:
        where: file and line.
        context: what the choices continue.
        choices: at least two, none empty.
        gold: index of the right one.
    """

    where: str
    context: str
    choices: tuple[str, ...]
    gold: int


def read_questions(path: Path) -> Iterator[Question]:
    """The questions of a file, empty lines left out; bounded by one line.

    Raises:
        InputError: the file cannot be read, or a line is wrong; names the line.
    """
    try:
        with path.open("rb") as file:
            for line in read_lines(file):
                where = f"{path}: line {line.number}"
                if line.data is None:
                    raise InputError(f"{where} is longer than the limit of {MAX_LINE_BYTES} bytes")
                yield parse_question(load_object(line.data, where, max_bytes=MAX_LINE_BYTES), where)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def count_questions(path: Path) -> int:
    """How many questions a file has, all of them checked.

    Raises:
        InputError: as `read_questions`, or there are none.
    """
    count = sum(1 for _ in read_questions(path))
    if not count:
        raise InputError(f"{path}: holds no question")
    return count


def parse_question(fields: Mapping[str, object], where: str) -> Question:
    """The question of a line.

    Raises:
        InputError: a field is missing or wrong.
    """
    context = fields[_only(fields, CONTEXTS, where)]
    if not isinstance(context, str):
        raise InputError(f"{where}: the context is {context!r:.40}, expected a text")
    name = _only(fields, CHOICES, where)
    choices, labels = _choices(fields[name], name, where)
    answer = _only(fields, ANSWERS, where)
    gold = _gold(fields[answer], labels, len(choices))
    if gold is None:
        raise InputError(
            f"{where}: {answer} is {fields[answer]!r:.40}, expected one of {len(choices)} choices: an index from 0, a "
            f"letter or a label"
        )
    for text in (context, *choices):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise InputError(f"{where}: holds a lone surrogate, which is no text")
    return Question(where, context, choices, gold)


def _only(fields: Mapping[str, object], names: tuple[str, ...], where: str) -> str:
    """The first of the names that there is."""
    for name in names:
        if name in fields:
            return name
    raise InputError(f"{where}: has none of the fields {', '.join(names)}")


def _choices(value: object, name: str, where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    given, labels = (value.get("text"), value.get("label", [])) if isinstance(value, dict) else (value, [])
    texts = _texts(given)
    if texts is None or not 2 <= len(texts) <= MAX_CHOICES or not all(texts):
        raise InputError(f"{where}: {name} is not a list of 2 to {MAX_CHOICES} texts, none of them empty")
    marks = _texts(labels)
    if marks is None or len(marks) not in {0, len(texts)} or len(set(marks)) != len(marks):
        raise InputError(f"{where}: {name}.label is not a list of different texts, one for each choice")
    return texts, marks


def _texts(value: object) -> tuple[str, ...] | None:
    if not isinstance(value, list):
        return None
    texts = tuple(one for one in value if isinstance(one, str))
    return texts if len(texts) == len(value) else None


def _gold(value: object, labels: tuple[str, ...], count: int) -> int | None:
    gold: int | None = None
    if isinstance(value, str):
        value = value.strip()
        if labels:
            return labels.index(value) if value in labels else None
        if len(value) == 1 and value in string.ascii_letters:
            gold = string.ascii_uppercase.index(value.upper())
        elif value.isascii() and value.isdigit() and len(value) <= len(str(MAX_CHOICES)):
            gold = int(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        gold = value
    return gold if gold is not None and 0 <= gold < count else None
