"""Chats as tokens, with what the assistant says marked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from bitnet_onnx.errors import InputError
from bitnet_onnx.runtime.chat import ChatTemplate, Message, chat_pieces
from bitnet_onnx.training.data._sources import Chat
from bitnet_onnx.training.data.tokenizer import DataTokenizer

_ASSISTANT: Final = "assistant"
#: Characters of all beginnings of one chat: it is rendered up to each of its answers.
_MAX_RENDERED: Final = 1 << 26
_RENDERED_AT_ONCE: Final = 1 << 22


@dataclass(frozen=True, slots=True, eq=False)
class EncodedChat:
    """A chat.

    Attributes:
        ids: `[T]`.
        learned: bool `[T]`, the tokens that the loss counts.
        size: bytes of its text.
    """

    ids: list[int]
    learned: npt.NDArray[np.bool_]
    size: int


def encode_chat_with_answers(chat: Chat, tokenizer: DataTokenizer, *, answers_only: bool) -> EncodedChat:
    """A chat as generation would have had it, from its first token to the end of its last turn.

    An answer is what the rendered chat has from where the chat before it, open for an answer, ends to the control
    token that ends the turn; without such a token, to the end of the turn. A token belongs to the answer that it ends
    in. A template that shows a turn differently once others follow is refused, unless the difference lies behind the
    end of the turn.

    Raises:
        InputError: no template, no answer, the template refuses the chat or changes it, or the chat is too large.
    """
    template = tokenizer.template
    if template is None:
        raise InputError("the model has no chat template; give text instead of messages, or a model.tokenizer with one")
    answers = [index for index, message in enumerate(chat.messages) if message.role == _ASSISTANT]
    if answers_only and not answers:
        raise InputError(f"no message has the role {_ASSISTANT}: nothing to learn")
    total = sum(len(message.content) + 1 for message in chat.messages) * len(answers)
    if answers_only and total > _MAX_RENDERED:
        raise InputError(
            f"{len(answers)} answers in {len(chat.messages)} messages of {total // len(answers)} characters are too "
            f"many for one chat; divide it, or learn all of it (answers_only = false)"
        )
    ids: list[int] = []
    stops: list[int] = []
    text = ""
    for piece, parse_special in chat_pieces(template, tokenizer.text, chat.messages, chat.tools):
        found, offsets = tokenizer.text.encode_with_offsets(piece, parse_special=parse_special)
        ids += found
        stops += [len(text) + stop for _, stop in offsets]
        text += piece
    if not answers_only:
        return EncodedChat(ids, np.ones(len(ids), np.bool_), len(text.encode()))
    control = np.fromiter((token in tokenizer.text.control_ids for token in ids), np.bool_, len(ids))
    ended_text = np.array(ids, np.int64) == (-1 if tokenizer.end is None else tokenizer.end)
    ends = np.maximum.accumulate(np.array(stops, np.int64)) if stops else np.zeros(0, np.int64)
    learned = np.zeros(len(ids), np.bool_)
    before = _rendered(template, chat, answers, generation_prompt=True)
    after = _rendered(template, chat, [index + 1 for index in answers], generation_prompt=False)
    for index, opened, ended in zip(answers, before, after, strict=True):
        if not text.startswith(opened):
            raise _changed(index, "what stands before")
        stop = _answer_end(text, len(opened), ended, ends, control, ended_text, tokenizer)
        if stop is None:
            raise _changed(index, "")
        learned |= (ends > len(opened)) & (ends <= stop)
    return EncodedChat(ids, learned, len(text.encode()))


def _answer_end(
    text: str,
    start: int,
    ended: str,
    ends: npt.NDArray[np.int64],
    control: npt.NDArray[np.bool_],
    ended_text: npt.NDArray[np.bool_],
    tokenizer: DataTokenizer,
) -> int | None:
    """Where in `text` the answer from `start` on ends; None where the chat up to it, `ended`, differs within it."""
    same = _same(text, ended)
    if same < start:
        return None
    whole = ends[ends <= same]
    turn = np.flatnonzero((whole > start) & control[: whole.size])
    if turn.size > 1 and ended_text[turn[-1]] and not text[int(whole[turn[-2]]) : int(whole[turn[-1] - 1])].strip():
        # The conversation ends here, behind a turn that had ended.
        turn = turn[:-1]
        same = int(whole[turn[-1]])
        whole = whole[: turn[-1] + 1]
        ended = text[:same]
    stop = int(whole[turn[-1]]) if turn.size else start
    # What differs may begin like what follows, within a token.
    if turn.size and not text[stop : int(whole[-1])].strip():
        rest = "" if same == len(ended) else ended[stop:].strip()
        tokens = tokenizer.text.encode(rest, parse_special=True, add_bos=False) if rest else []
        if all(token in tokenizer.text.control_ids for token in tokens):
            return stop
    return same if same == len(ended) else None


def _same(text: str, other: str) -> int:
    """Characters at the beginning that both have."""
    if text.startswith(other):
        return len(other)
    low, high = 0, min(len(text), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        # What is known to be equal need not be compared again.
        if text[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _rendered(template: ChatTemplate, chat: Chat, counts: Sequence[int], *, generation_prompt: bool) -> Iterator[str]:
    """The chat up to each of the counts of messages, a few at a time."""
    group: list[tuple[Message, ...]] = []
    size = 0
    for count in counts:
        messages = chat.messages[:count]
        group.append(messages)
        size += sum(len(message.content) for message in messages)
        if size > _RENDERED_AT_ONCE:
            yield from template.render(group, chat.tools, generation_prompt=generation_prompt)
            group, size = [], 0
    if group:
        yield from template.render(group, chat.tools, generation_prompt=generation_prompt)


def _changed(index: int, what: str) -> InputError:
    return InputError(
        f"the chat template changes {what or 'the turn of'} message {index + 1} once others follow, so that its tokens "
        f"cannot be told; give each chat with one answer, at its end, or learn all of it (answers_only = false)"
    )
