"""What of a chat is learned, token by token, under the templates of several families."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from training_texts import CHATML, chat, data_tokenizer, write_lines

from bitnet_onnx.errors import InputError
from bitnet_onnx.runtime.chat import Message, encode_chat
from bitnet_onnx.training.data import DataTokenizer, open_data
from bitnet_onnx.training.data._chats import encode_chat_with_answers
from bitnet_onnx.training.data._sources import Chat
from bitnet_onnx.training.settings import DataSettings

#: Ends the conversation with a token that is not there while it goes on, as Phi-3 does.
PHI = CHATML.replace("{% endif %}", "{% else %}{{ '<|endoftext|>' }}{% endif %}")
#: Takes thoughts out of all answers but the last, as Qwen3 does.
THOUGHTS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{{ m['content'] if loop.last else m['content'].split('</think>')[-1] }}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
#: No control token at all.
PLAIN = (
    "{% for m in messages %}{{ ('Q: ' if m['role'] == 'user' else 'A:') + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'A:' }}{% endif %}"
)
#: Says how many messages there are before all of them.
COUNTS = "{{ messages | length }} " + CHATML


def read(tmp_path: Path, tokenizer: DataTokenizer, *lines: object, answers_only: bool = True) -> tuple[str, list[str]]:
    """The text of all tokens, and the runs that are learned."""
    path = write_lines(tmp_path / "chats.jsonl", lines)
    settings = DataSettings((path,), length=1, answers_only=answers_only)
    file = open_data(settings, tokenizer, seed=0, cache=tmp_path / "cache").train.windows.files[0]
    count = file.counts.tokens
    ids, learned = file.ids(0, count), file.learned(0, count)
    assert file.counts.learned == int(learned.sum())
    runs: list[list[int]] = [[]]
    for token, one in zip(ids.tolist(), learned.tolist(), strict=True):
        if one:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    inner = tokenizer.text.inner

    def text(tokens: list[int]) -> str:
        return str(inner.decode(tokens, skip_special_tokens=False))

    return text(ids.tolist()), [text(run) for run in runs if run]


def test_answers_with_their_end_are_learned_and_nothing_else(tmp_path: Path) -> None:
    text, learned = read(tmp_path, data_tokenizer(), chat("hi", "héllo\n\nyou", "and", " 1 "), chat("x", "y"))
    assert learned == ["héllo\n\nyou<|im_end|>", " 1 <|im_end|>", "y<|im_end|>"]
    assert text.startswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhéllo")
    assert text.endswith("<|im_start|>assistant\ny<|im_end|>\n<|endoftext|>")
    assert text.count("<|endoftext|>") == 2


def test_all_of_a_chat_is_learned_if_asked(tmp_path: Path) -> None:
    text, learned = read(tmp_path, data_tokenizer(), chat("hi", "you"), answers_only=False)
    assert learned == [text]


def test_a_control_token_in_a_message_is_text_and_ends_no_answer(tmp_path: Path) -> None:
    tokenizer = data_tokenizer()
    text, learned = read(tmp_path, tokenizer, chat("say <|im_end|>", "it is <|im_end|> or\n"))
    assert learned == ["it is <|im_end|> or\n<|im_end|>"]
    end = tokenizer.text.token_id("<|im_end|>")
    path = tmp_path / "chats.jsonl"
    file = open_data(DataSettings((path,), length=1), tokenizer, seed=0, cache=tmp_path / "cache").train.windows.files[
        0
    ]
    assert file.ids(0, file.counts.tokens).tolist().count(end) == 2
    assert text.count("<|im_end|>") == 4


def test_what_a_template_writes_behind_the_last_turn_only_is_no_change(tmp_path: Path) -> None:
    text, learned = read(tmp_path, data_tokenizer(PHI), chat("a", "b", "c", "d"))
    assert learned == ["b<|im_end|>", "d<|im_end|>"]
    assert text.endswith("d<|im_end|>\n<|endoftext|>")
    assert text.count("<|endoftext|>") == 1


def test_without_control_tokens_a_turn_ends_where_it_ends(tmp_path: Path) -> None:
    text, learned = read(tmp_path, data_tokenizer(PLAIN), chat("a", " b", "c", " d"))
    assert text == "Q: a\nA: b\nQ: c\nA: d\n<|endoftext|>"
    assert learned == [" b\n", " d\n<|endoftext|>"]


def test_thoughts_that_vanish_later_are_refused_and_those_of_the_last_turn_learned(tmp_path: Path) -> None:
    tokenizer = data_tokenizer(THOUGHTS)
    assert read(tmp_path, tokenizer, chat("a", "b</think>c"))[1] == ["b</think>c<|im_end|>"]
    with pytest.raises(InputError, match=r"chats\.jsonl: line 2: the chat template changes the turn of message 2 once"):
        read(tmp_path, tokenizer, chat("x", "y"), chat("a", "b</think>c", "d", "e"))


def test_a_template_that_changes_what_stands_before_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 1: the chat template changes what stands before message 2"):
        read(tmp_path, data_tokenizer(COUNTS), chat("a", "b", "c", "d"))
    assert read(tmp_path, data_tokenizer(COUNTS), chat("a", "b"), answers_only=False)[0].startswith("2 <|im_start|>")


def test_before_each_answer_stand_the_tokens_that_generation_would_have_had() -> None:
    tokenizer = data_tokenizer()
    assert tokenizer.template is not None
    roles = ("system", "user", "assistant", "user", "assistant")
    messages = tuple(Message(role, f"what the {role} says\n") for role in roles)
    encoded = encode_chat_with_answers(Chat(messages, None, 1), tokenizer, answers_only=True)
    begins = np.flatnonzero(encoded.learned & ~np.append(False, encoded.learned[:-1]))
    prompts = [encode_chat(tokenizer.template, tokenizer.text, messages[:count]) for count in (2, 4)]
    assert [encoded.ids[:begin] for begin in begins] == prompts


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"messages": [{"role": "user", "content": "a"}]}, "no message has the role assistant"),
        ({"messages": []}, "messages is no list of messages"),
        ({"messages": [{"role": "user"}]}, "message 1: a message is an object with the fields role and content"),
        ({"messages": [{"role": "user", "content": 1}]}, "content of the user message is a int"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "message 1: the text is not valid Unicode"),
        ({"messages": [{"role": "user", "content": "a"}], "tools": {}}, "tools is no list of objects"),
        (chat(*["a" * 7_000] * 400), "400 messages of 2800400 characters are too many for one chat"),
    ],
)
def test_wrong_chats(tmp_path: Path, line: object, said: str) -> None:
    with pytest.raises(InputError, match=rf"chats\.jsonl: line 2: .*{re.escape(said)}"):
        read(tmp_path, data_tokenizer(), chat("a", "b"), line)


def test_a_model_without_a_template(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 1: the model has no chat template; give text"):
        read(tmp_path, data_tokenizer(None), chat("a", "b"))


def test_a_template_that_refuses_says_so_with_the_line(tmp_path: Path) -> None:
    template = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    with pytest.raises(InputError, match="line 1: the chat template refuses the messages: no system"):
        read(tmp_path, data_tokenizer(template), chat("a", "b"))
