"""Multiple-choice questions: the forms of a line, and answers against a computation by hand."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_package import edit_json, write_package

from bitnet_onnx.converters import convert
from bitnet_onnx.errors import BitnetOnnxError, InputError
from bitnet_onnx.evaluation.quality import _reader, evaluate
from bitnet_onnx.evaluation.quality._reader import WindowReader
from bitnet_onnx.evaluation.quality.task_file import MAX_CHOICES, Question, count_questions, parse_question
from bitnet_onnx.evaluation.quality.tasks import encode_question, log_likelihoods
from bitnet_onnx.policy import Policy, Precision, Weights
from bitnet_onnx.runtime import Device, Model, PackageInfo, load
from bitnet_onnx.runtime.session import DecoderSession
from bitnet_onnx.runtime.tokenizer import TextTokenizer

FLOAT = Precision(Weights.FLOAT32)
QUESTIONS = (
    {"query": "The sky is", "choices": ["blue", "green as grass", "a"], "gold": 0},
    {"query": "The sky is not", "choices": ["blue", "\u017c\u00f3\u0142ty"], "gold": 1},
    {"ctx": "The sky", "endings": ["falls", "is", "was", "x"], "label": "3"},
    {"question": "The sun? ", "choices": {"text": ["sets", "rises"], "label": ["1", "2"]}, "answerKey": "2"},
)


@pytest.fixture(scope="module")
def package(tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("tasks") / "package"
    convert(tiny_checkpoint("tied_mha"), output, policy=Policy(FLOAT, FLOAT))
    return output


@pytest.fixture(scope="module")
def model(package: Path) -> Model:
    return load(package)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text("\n\n".join(map(json.dumps, QUESTIONS)) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("fields", "gold"),
    [
        ({"gold": 1}, 1),
        ({"label": "1"}, 1),
        ({"answer": "C"}, 2),
        ({"answer": " b "}, 1),
        ({"answerKey": "A"}, 0),
    ],
)
def test_the_right_choice(fields: dict[str, object], gold: int) -> None:
    found = parse_question({"query": "", "choices": ["a", "b", "c"], **fields}, "here")
    assert found == Question("here", "", ("a", "b", "c"), gold)


def test_labels_of_choices() -> None:
    choices = {"text": ["a", "b"], "label": ["2", "1"]}
    assert parse_question({"question": "q", "choices": choices, "answerKey": "1"}, "here").gold == 1
    assert parse_question({"question": "q", "choices": choices, "answer": 1}, "here").gold == 1
    assert parse_question({"question": "q", "choices": {"text": ["a", "b"]}, "answer": "b"}, "here").gold == 1


GOOD = {"query": "q", "choices": ["a", "b"], "gold": 0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": 3}, "the context is 3, expected a text"),
        ({"query": "a\ud800"}, "a lone surrogate"),
        ({"choices": ["a", "\udfff"]}, "a lone surrogate"),
        ({"choices": ["a"]}, "choices is not a list of 2 to 256 texts"),
        ({"choices": ["a"] * (MAX_CHOICES + 1)}, "choices is not a list"),
        ({"choices": ["a", ""]}, "none of them empty"),
        ({"choices": ["a", 1]}, "choices is not a list"),
        ({"choices": "ab"}, "choices is not a list"),
        ({"choices": {"label": ["A"]}}, "choices is not a list"),
        ({"choices": {"text": ["a", "b"], "label": ["A"]}}, "choices.label is not a list of different texts"),
        ({"choices": {"text": ["a", "b"], "label": ["A", "A"]}}, "choices.label is not"),
        ({"choices": {"text": ["a", "b"], "label": "AB"}}, "choices.label is not"),
        ({"choices": {"text": ["a", "b"], "label": ["A", "B"]}, "gold": "C"}, "gold is 'C', expected one of 2 choices"),
        ({"gold": 2}, "gold is 2, expected one of 2 choices"),
        ({"gold": -1}, "gold is -1"),
        ({"gold": True}, "gold is True"),
        ({"gold": 0.0}, "gold is 0.0"),
        ({"gold": "\u00b2"}, "gold is"),
        ({"gold": "9" * 5000}, "gold is '999"),
        ({"gold": None}, "gold is None"),
    ],
)
def test_wrong_fields(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        parse_question({**GOOD, **change}, "file: line 3")
    assert str(caught.value).startswith("file: line 3")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", GOOD)
def test_missing_fields(name: str) -> None:
    with pytest.raises(InputError, match=f"has none of the fields .*{name}"):
        parse_question({key: value for key, value in GOOD.items() if key != name}, "here")


def test_files_that_hold_no_questions(tmp_path: Path, package: Path) -> None:
    path = tmp_path / "questions"
    with pytest.raises(InputError, match="questions: cannot be read: No such file"):
        count_questions(path)
    path.write_text("\n\n")
    with pytest.raises(InputError, match="questions: holds no question"):
        count_questions(path)
    path.write_text(json.dumps(GOOD) + "\n\n{nonsense")
    with pytest.raises(InputError, match="questions: line 3: not JSON"):
        evaluate(package, tasks=[path])
    path.write_bytes(b'{"query": "' + b"x" * (5 << 20) + b'"}')
    with pytest.raises(InputError, match="questions: line 1 is longer than the limit"):
        count_questions(path)


def by_hand(model: Model, context: str, choice: str) -> float:
    """`log p` of the bytes of a choice, each from a forward pass of its own over all that is before it."""
    ids = model.tokenizer.encode(context, parse_special=False, add_bos=False)
    rest = model.tokenizer.encode(choice, parse_special=False, add_bos=False)
    total = 0.0
    for token in rest:
        logits = model.session.step(ids, model.session.new_cache()).astype(np.float64)
        total += logits[token] - logits.max() - math.log(np.exp(logits - logits.max()).sum())
        ids.append(token)
    return total


def test_against_a_computation_by_hand(package: Path, model: Model, questions: Path) -> None:
    right, right_by_bytes = 0, 0
    for fields in QUESTIONS:
        question = parse_question(fields, "here")
        context = question.context.rstrip()
        sums = [by_hand(model, context, f" {choice}") for choice in question.choices]
        reader = WindowReader(model.package, model.device)
        encoded = encode_question(question, model.tokenizer, None, 512)
        np.testing.assert_allclose(log_likelihoods(encoded, reader), sums, rtol=1e-5)
        assert encoded.sizes == [len(choice.encode()) for choice in question.choices]
        right += int(np.argmax(sums)) == question.gold
        right_by_bytes += int(np.argmax(np.array(sums) / encoded.sizes)) == question.gold
    (found,) = evaluate(package, tasks=[questions]).tasks
    assert (found.questions, found.accuracy.correct, found.accuracy_normalized.correct) == (4, right, right_by_bytes)
    assert right != right_by_bytes  # else the two could be confused
    assert found.reference_accuracy is None


def test_a_prefix_is_read_once(package: Path, questions: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    forward = DecoderSession._read

    def counted(self: DecoderSession, tokens: np.ndarray, *rest: object) -> np.ndarray:
        read.extend(tokens.tolist())
        return forward(self, tokens, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(DecoderSession, "_read", counted)
    evaluate(package, tasks=[questions])
    # "The sky is" and all but the last token of each choice, of which the first continues what was read; then
    # " not", " blue" ...: whatever a sequence shares with the one before is there already.
    texts = ["The sky is", "The sky is not", "The sky", "The sun?"]
    expected, held = 0, ""
    for text, fields in zip(texts, QUESTIONS, strict=True):
        question = parse_question(fields, "here")
        for choice in question.choices:
            sequence = f"{text} {choice}".encode()[:-1]
            shared = 0
            while shared < min(len(held), len(sequence)) and held[shared] == sequence[shared]:
                shared += 1
            # The logits behind the context are wanted for every choice: its last token is read again.
            expected += len(sequence) - min(shared, len(text) - 1)
            held = sequence  # type: ignore[assignment]
    assert len(read) == expected


def test_long_choices_are_read_in_pieces(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    question = Question("here", "The sky", ("is blue and wide", "x"), 0)
    encoded = encode_question(question, model.tokenizer, None, 512)
    whole = log_likelihoods(encoded, WindowReader(model.package, model.device))
    monkeypatch.setattr(_reader, "_MAX_CHUNK", 3)
    np.testing.assert_allclose(log_likelihoods(encoded, WindowReader(model.package, model.device)), whole, rtol=1e-5)


def test_where_context_and_choice_meet(model: Model) -> None:
    def texts(context: str, choice: str) -> tuple[str, str]:
        encoded = encode_question(Question("here", context, (choice, "z"), 0), model.tokenizer, 7, 512)
        return model.tokenizer.decode(encoded.context), model.tokenizer.decode(encoded.choices[0])

    assert texts("a", "b") == ("a", " b")
    assert texts("a", " b") == ("a", " b")
    assert texts("a \n", "b") == ("a", " \nb")
    assert texts("a:", "\nb") == ("a:", "\nb")
    encoded = encode_question(Question("here", "", ("b", "zz"), 0), model.tokenizer, 7, 512)
    assert encoded.context == [7]
    assert [len(choice) for choice in encoded.choices] == [1, 2]


def test_questions_that_do_not_fit(model: Model) -> None:
    with pytest.raises(InputError, match="here: 20 tokens do not fit the model's context of 18"):
        encode_question(Question("here", "q" * 10, ("a", "b" * 9), 0), model.tokenizer, None, 18)
    encode_question(Question("here", "q" * 10, ("a", "b" * 9), 0), model.tokenizer, None, 19)
    with pytest.raises(InputError, match="the context is empty, and the model has no token for a beginning"):
        encode_question(Question("here", " ", ("a", "b"), 0), model.tokenizer, None, 18)


def test_a_beginning_token_stands_before_the_context(tmp_path: Path) -> None:
    directory = write_package(tmp_path)
    edit_json(directory / "tokenizer_config.json", add_bos_token=True, bos_token="<|im_start|>")
    tokenizer = TextTokenizer(PackageInfo.open(directory))
    for context, length in (("ab", 3), ("", 1)):
        encoded = encode_question(Question("here", context, ("c", "d"), 0), tokenizer, 0, 90)
        assert encoded.context[0] == tokenizer.bos_id
        assert len(encoded.context) == length
        assert tokenizer.decode(encoded.choices[0]).strip() == "c"


def test_logits_that_are_not_finite(tmp_path: Path) -> None:
    directory = write_package(tmp_path)
    data = directory / "model.onnx.data"
    data.write_bytes(b"\xff" * data.stat().st_size)
    info = PackageInfo.open(directory)
    encoded = encode_question(Question("here", "a", ("b", "c"), 0), TextTokenizer(info), None, 90)
    with pytest.raises(BitnetOnnxError, match="gives logits that are not finite"):
        log_likelihoods(encoded, WindowReader(info, Device()))


def test_against_a_reference(package: Path, questions: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    (found,) = evaluate(package, tasks=[questions], reference=package, progress=lambda *step: steps.append(step)).tasks
    assert found.reference_accuracy == found.accuracy
    assert found.reference_accuracy_normalized == found.accuracy_normalized
    assert found.agreement == 1
    assert steps == [("questions.jsonl", done, 4) for done in range(1, 5)]
