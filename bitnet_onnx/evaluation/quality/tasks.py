"""Multiple-choice questions: the choice that a model thinks likeliest behind the context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitnet_onnx.errors import BitnetOnnxError, InputError
from bitnet_onnx.evaluation._logits import Progress
from bitnet_onnx.evaluation.quality._reader import WindowReader
from bitnet_onnx.evaluation.quality._scores import Distribution, DoubleArray
from bitnet_onnx.evaluation.quality.result import Share, TaskQuality
from bitnet_onnx.evaluation.quality.task_file import Question, read_questions
from bitnet_onnx.runtime.tokenizer import TextTokenizer


@dataclass(frozen=True, slots=True)
class Encoded:
    """A question as tokens.

    Attributes:
        context: token ids, at least one.
        choices: token ids of each choice, at least one.
        sizes: bytes of UTF-8 of each choice.
    """

    context: list[int]
    choices: list[list[int]]
    sizes: list[int]


def encode_question(
    question: Question, tokenizer: TextTokenizer, beginning: int | None, context_length: int
) -> Encoded:
    """Context and choices as tokens, cut where lm-evaluation-harness cuts them.

    A space stands between them where neither side has white space. White space at the end of the context belongs to the
    choices, and the choice is what the tokens of the whole have behind as many as the context alone has.

    Args:
        question: the texts.
        tokenizer: of the model, which may put a token for the beginning in front.
        beginning: the token to read where the context is empty.
        context_length: most tokens of context and choice.

    Raises:
        InputError: an empty context with no token for the beginning, a choice without tokens of its own, or too many.
    """
    stripped = question.context.rstrip()
    space = question.context[len(stripped) :]
    context = tokenizer.encode(stripped, parse_special=False, add_bos=True)
    empty = not context
    if empty:
        if beginning is None:
            raise InputError(f"{question.where}: the context is empty, and the model has no token for a beginning")
        context = [beginning]
    choices = []
    for choice in question.choices:
        between = space or ("" if not stripped or choice[0].isspace() else " ")
        ids = tokenizer.encode(f"{stripped}{between}{choice}", parse_special=False, add_bos=True)
        if not empty:
            ids = ids[len(context) :]
        if not ids:
            raise InputError(f"{question.where}: the choice {choice!r:.40} has no token of its own behind the context")
        # Nothing is asked behind its last token.
        if len(context) + len(ids) - 1 > context_length:
            raise InputError(
                f"{question.where}: {len(context) + len(ids)} tokens do not fit the model's context of {context_length}"
            )
        choices.append(ids)
    return Encoded(context, choices, [len(choice.encode()) for choice in question.choices])


def log_likelihoods(encoded: Encoded, reader: WindowReader) -> DoubleArray:
    """`log p` of each choice behind the context, in nats; the context is read once.

    Raises:
        BitnetOnnxError: the model gives logits that are not finite.
    """
    result = np.zeros(len(encoded.choices), np.float64)
    skip = len(encoded.context) - 1
    for index, choice in enumerate(encoded.choices):
        targets, done = np.array(choice, np.int64), 0
        for logits in reader.read([*encoded.context, *choice[:-1]], skip):
            result[index] -= Distribution.of(logits).surprise(targets[done : done + len(logits)]).sum()
            done += len(logits)
    if not np.isfinite(result).all():
        raise BitnetOnnxError(
            f"{reader.package.directory}: gives logits that are not finite: the weights are broken, see "
            f"`bitnet-onnx validate`"
        )
    return result


def score_tasks(
    path: Path, total: int, reader: WindowReader, reference: WindowReader | None, progress: Progress | None
) -> TaskQuality:
    """Answers every question of a file.

    Raises:
        InputError: a line is wrong, or does not fit the model.
        BitnetOnnxError: the model cannot be run, or gives logits that are not finite.
    """
    tokenizer = TextTokenizer(reader.package)
    beginning = beginning_token(reader, tokenizer)
    readers = [reader] if reference is None else [reader, reference]
    length = min(one.package.architecture.context_length for one in readers)
    correct = np.zeros((len(readers), 2), np.int64)
    alike = 0
    for number, question in enumerate(read_questions(path), 1):
        encoded = encode_question(question, tokenizer, beginning, length)
        answers = [_answers(log_likelihoods(encoded, one), encoded.sizes) for one in readers]
        correct += np.array(answers) == question.gold
        alike += answers[0][0] == answers[-1][0]
        if progress is not None:
            progress(path.name, number, total)
    shares = [(Share.of(int(plain), total), Share.of(int(normalized), total)) for plain, normalized in correct]
    accuracy, by_bytes = shares[0]
    if reference is None:
        return TaskQuality(str(path), total, accuracy, by_bytes)
    return TaskQuality(str(path), total, accuracy, by_bytes, *shares[1], agreement=alike / total)


def beginning_token(reader: WindowReader, tokenizer: TextTokenizer) -> int | None:
    """What stands for the beginning of a text: its own token, or one that ends the text before."""
    if tokenizer.bos_id is not None:
        return tokenizer.bos_id
    return next(iter(reader.package.eos_token_ids), None)


def _answers(likelihoods: DoubleArray, sizes: Sequence[int]) -> tuple[int, int]:
    """The likeliest choice, by the sum and by the byte; the first of equals."""
    return int(likelihoods.argmax()), int((likelihoods / np.array(sizes)).argmax())
