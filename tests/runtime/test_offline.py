"""Files of prompts: ordered, each line once, whatever happens in between."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitnet_onnx.errors import BitnetOnnxError, InputError
from bitnet_onnx.runtime import Device, Model, PackageInfo, SamplingParameters, offline
from bitnet_onnx.runtime.engine.engine import Engine, EngineSettings
from bitnet_onnx.runtime.memory import HybridMemoryPool
from bitnet_onnx.runtime.offline import OfflineReport, write_answers
from bitnet_onnx.runtime.prompts import PromptEncoder

GREEDY = SamplingParameters(max_new_tokens=6)


@pytest.fixture(scope="module")
def prompts(package_dir: Path) -> PromptEncoder:
    return PromptEncoder(PackageInfo.open(package_dir))


@pytest.fixture(scope="module")
def open_engine(package_dir: Path, prompts: PromptEncoder) -> Callable[[], Engine]:
    def get() -> Engine:
        return Engine.open(
            package_dir,
            EngineSettings(max_batch=2),
            memory=HybridMemoryPool(1 << 28),
            threads=1,
            device=Device(),
            prompts=prompts,
        )

    return get


Answer = Callable[..., OfflineReport]


@pytest.fixture
def answer(open_engine: Callable[[], Engine], prompts: PromptEncoder, tmp_path: Path) -> Answer:
    def call(parameters: SamplingParameters = GREEDY, salt: bytes = b"") -> OfflineReport:
        with open_engine() as engine:
            return write_answers(engine, prompts, tmp_path / "in.jsonl", tmp_path / "out.jsonl", parameters, salt=salt)

    return call


def write(path: Path, *lines: object) -> None:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (path / "in.jsonl").write_text("\n".join(texts) + "\n")


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "out.jsonl").read_text().splitlines()]


def test_answers_are_those_of_the_model_in_order(answer: Answer, tmp_path: Path, package: PackageInfo) -> None:
    model = Model(package, Device(), threads=1)
    messages = [{"role": "user", "content": "hi"}]
    write(
        tmp_path,
        {"id": "long", "prompt": "abc", "max_new_tokens": 40},
        {"prompt": [1, 2, 3]},
        {"id": 7, "messages": messages},
        {"prompt": "xyz", "temperature": 1.5, "seed": 3, "stop": ["q", "z"]},
    )
    report = answer()
    found = read(tmp_path)
    assert report.answered == 4
    assert (report.failed, report.kept) == (0, 0)
    assert report.generated_tokens == sum(line["completion_tokens"] for line in found)
    expected = [
        model.generate("abc", replace(GREEDY, max_new_tokens=40)),
        model.generate([1, 2, 3], GREEDY),
        model.chat(messages, GREEDY),
        model.generate("xyz", replace(GREEDY, temperature=1.5, seed=3, stop=("q", "z"))),
    ]
    assert [line["text"] for line in found] == [generation.text for generation in expected]
    assert [line["finish_reason"] for line in found] == [generation.finish_reason for generation in expected]
    assert [line["line"] for line in found] == [1, 2, 3, 4]
    assert [line["id"] for line in found] == ["long", None, 7, None]
    assert found[0]["prompt_tokens"] == 3


def test_each_line_has_a_seed_of_its_own(answer: Answer, tmp_path: Path) -> None:
    write(tmp_path, *[{"prompt": "abc"}] * 6)
    answer(replace(GREEDY, temperature=2.0, seed=5))
    first = read(tmp_path)
    assert len({line["text"] for line in first}) > 1
    (tmp_path / "out.jsonl").unlink()
    answer(replace(GREEDY, temperature=2.0, seed=5))
    assert read(tmp_path) == first


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not JSON"),
        ("[]", "object is expected"),
        ('{"prompt": "a", "prompt": "b"}', "appears twice"),
        ({"prompt": "a", "messages": []}, "either prompt or messages"),
        ({}, "either prompt or messages"),
        ({"prompt": "a", "temprature": 1}, "unknown field 'temprature'"),
        ({"prompt": "a", "temperature": -1}, "temperature is -1"),
        ({"prompt": "a", "max_new_tokens": "5"}, "max_new_tokens is '5'"),
        ({"prompt": "a", "stop": 5}, "stop is 5"),
        ({"prompt": "a", "stop": [5]}, "stop string"),
        ({"prompt": 5}, "neither a text nor"),
        ({"prompt": None}, "neither a text nor"),
        ({"prompt": [{"role": "user"}]}, "message"),
        ({"prompt": [1, 5000]}, "5000 is outside"),
        ({"prompt": "a" * 200}, "more than the model's context of 96"),
        ({"prompt": "\ud800"}, "surrogate"),
        ({"messages": "hi"}, "not a list"),
        ({"messages": [{"role": "user", "content": 5}]}, "content of the user message"),
        ({"prompt": "a", "id": [1]}, "id is [1]"),
        ("[" * 100 + "]" * 100, "deeper"),
        ('{"prompt": "' + "a" * (4 << 20) + '"}', "longer than the limit"),
    ],
)
def test_a_bad_line_has_its_error_in_its_place(answer: Answer, tmp_path: Path, line: object, words: str) -> None:
    write(tmp_path, {"prompt": "a"}, line, {"prompt": "b"})
    report = answer()
    found = read(tmp_path)
    assert (report.answered, report.failed) == (3, 1)
    assert words in found[1]["error"]
    assert "text" not in found[1]
    assert [entry["line"] for entry in found] == [1, 2, 3]
    assert "text" in found[0]
    assert "text" in found[2]


def test_empty_lines_have_no_answer(answer: Answer, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'\n{"prompt": "a"}\r\n \n{"prompt": "b"}')
    answer()
    assert [line["line"] for line in read(tmp_path)] == [2, 4]


LINES = [{"prompt": "abc", "id": n, "max_new_tokens": 1 + n % 5} for n in range(9)] + [{"prompt": 5}]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 10_000), zeros=st.booleans())
def test_what_was_torn_anywhere_is_completed(answer: Answer, tmp_path: Path, cut: int, zeros: bool) -> None:
    out = tmp_path / "out.jsonl"
    if not (tmp_path / "whole.jsonl").exists():
        write(tmp_path, *LINES)
        answer()
        out.rename(tmp_path / "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    torn = whole[: cut % (len(whole) + 1)]
    kept = torn.count(b"\n")
    out.write_bytes(torn + (b"\0" * 50 + b"\n") * zeros)
    report = answer()
    assert out.read_bytes() == whole
    assert (report.kept, report.answered) == (kept, 10 - kept)


def test_answers_to_something_else_are_not_continued(answer: Answer, tmp_path: Path) -> None:
    write(tmp_path, *LINES)
    answer(salt=b"one")
    before = (tmp_path / "out.jsonl").read_bytes()
    for parameters, salt in ((GREEDY, b"two"), (replace(GREEDY, temperature=1.0), b"one")):
        with pytest.raises(InputError, match="line 1 is no answer to line 1"):
            answer(parameters, salt)
    write(tmp_path, *LINES[:4], {"prompt": "changed"}, *LINES[5:])
    with pytest.raises(InputError, match="line 5 is no answer to line 5"):
        answer(salt=b"one")
    write(tmp_path, *LINES[:4])
    with pytest.raises(InputError, match="line 5 answers nothing"):
        answer(salt=b"one")
    (tmp_path / "out.jsonl").write_text("notes\nof mine\n")
    with pytest.raises(InputError, match="line 1: not JSON"):
        answer(salt=b"one")
    assert (tmp_path / "out.jsonl").read_text() == "notes\nof mine\n"
    (tmp_path / "out.jsonl").write_bytes(before)
    write(tmp_path, *LINES)
    assert answer(salt=b"one") == OfflineReport(0, 0, 10, 0)


def test_files_that_cannot_be_used(answer: Answer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"in.jsonl: cannot be opened"):
        answer()
    write(tmp_path, {"prompt": "a"})
    (tmp_path / "out.jsonl").mkdir()
    with pytest.raises(InputError, match=r"out.jsonl: cannot be opened"):
        answer()
    (tmp_path / "out.jsonl").rmdir()
    (tmp_path / "out.jsonl").symlink_to(tmp_path / "in.jsonl")
    with pytest.raises(InputError, match="overwrite the prompts"):
        answer()


def test_an_engine_that_dies_leaves_what_was_answered(
    open_engine: Callable[[], Engine],
    prompts: PromptEncoder,
    answer: Answer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(tmp_path, *LINES)
    paths = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    engine = open_engine()
    whole_step = engine.step
    steps = 0

    def step() -> bool:
        nonlocal steps
        steps += 1
        if steps == 6:
            raise RuntimeError("the machine is on fire")
        return whole_step()

    monkeypatch.setattr(engine, "step", step)
    with engine, pytest.raises(BitnetOnnxError, match="fire"):
        write_answers(engine, prompts, *paths, GREEDY)
    lines = len(read(tmp_path)) if paths[1].exists() else 0
    assert lines < 10
    report = answer()
    assert (report.kept, report.answered) == (lines, 10 - lines)
    assert [line["line"] for line in read(tmp_path)] == list(range(1, 11))


def test_no_more_is_read_than_may_be_ahead(
    open_engine: Callable[[], Engine], prompts: PromptEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, *[{"prompt": "a"}] * 40)
    largest = 0
    with open_engine() as engine:
        submit = engine.submit

        def watched(request: object) -> object:
            nonlocal largest
            done = len(read(tmp_path))
            largest = max(largest, engine.metrics().submitted + 1 - done)
            return submit(request)

        monkeypatch.setattr(engine, "submit", watched)
        write_answers(engine, prompts, tmp_path / "in.jsonl", tmp_path / "out.jsonl", GREEDY)
    assert largest == 2 * offline._AHEAD
