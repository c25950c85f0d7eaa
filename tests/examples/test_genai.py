"""The chat of examples/genai: its text, its stream, its conversation, and its errors."""

from __future__ import annotations

import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from greedy import BITNET_TINY, PROMPT, TEXT
from tiny_package import edit_json

from bitnet_onnx.runtime import SamplingParameters, load

CHAT = Path(__file__).parents[2] / "examples/genai/chat.py"
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}answer:"
RAW = ("--raw", "--prompt", PROMPT)

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def chat() -> ModuleType:
    spec = importlib.util.spec_from_file_location("genai_chat", CHAT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return shutil.copytree(BITNET_TINY, tmp_path / "package")


@pytest.fixture
def talking(package: Path) -> Path:
    """The model with a chat template; what it answers makes no sense, but is always the same."""
    edit_json(package / "tokenizer_config.json", chat_template=TEMPLATE, add_bos_token=False)
    return package


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Refused:
    """The one line that a run ends with."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["chat.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(CHAT), run_name="__main__")
        assert end.value.code == 2
        line = capfd.readouterr().err
        assert line.count("\n") == 1
        return line.removeprefix("chat.py: ").removesuffix("\n")

    return run


def test_text_arrives_in_pieces_and_the_package_stays_as_it_is(package: Path, operator_library: Path) -> None:
    before = {path.name: path.read_bytes() for path in package.iterdir()}
    options = ["--max-new-tokens", "400", "--library", str(operator_library)]
    command = [sys.executable, "-P", str(CHAT), str(package), *RAW, *options]
    pieces = []
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while piece := os.read(process.stdout.fileno(), 1 << 16):
            pieces.append(piece)
    assert process.returncode == 0
    assert b"".join(pieces).decode().startswith(TEXT)
    assert len(pieces) > 20
    assert {path.name: path.read_bytes() for path in package.iterdir()} == before


def answer(chat: ModuleType, package: Path, library: Path | None, **search: Any) -> str:
    conversation = chat.Conversation(chat.open_model(package, library), search, 32)
    return "".join(conversation.continue_text(PROMPT))


def test_the_library_is_taken_from_anywhere(chat: ModuleType, operator_library: Path, tmp_path: Path) -> None:
    folder = Path.cwd()
    library = tmp_path / operator_library.name
    shutil.copy(operator_library, library)
    assert answer(chat, BITNET_TINY, library) == TEXT
    if sys.platform == "linux":
        assert str(library) in Path("/proc/self/maps").read_text()
    assert Path.cwd() == folder


def test_the_function_bodies_run_without_the_library(chat: ModuleType) -> None:
    assert answer(chat, BITNET_TINY, None)[:12] == TEXT[:12]


def test_a_seed_repeats_a_text(chat: ModuleType, operator_library: Path) -> None:
    sampling = {"do_sample": True, "temperature": 0.9, "top_k": 0, "top_p": 0.95}
    first, again, other = (
        answer(chat, BITNET_TINY, operator_library, random_seed=seed, **sampling) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_conversation_is_kept(chat: ModuleType, talking: Path, operator_library: Path) -> None:
    """Each answer is what our own runtime gives for all messages so far."""
    conversation = chat.Conversation(chat.open_model(talking, operator_library), {}, 24)
    ours = load(talking)
    messages = [{"role": "system", "content": "You are a king."}]
    conversation.messages.extend(messages)
    for question in ("Who art thou?", "And who am I?", "Where is the sword?"):
        messages.append({"role": "user", "content": question})
        text = "".join(conversation.ask(question))
        assert text == ours.chat(messages, SamplingParameters(max_new_tokens=24)).text
        messages.append({"role": "assistant", "content": text})
    assert conversation.messages == messages


def test_lines_of_the_standard_input_are_questions(chat: ModuleType, talking: Path, operator_library: Path) -> None:
    command = [sys.executable, "-P", str(CHAT), str(talking), "--library", str(operator_library)]
    questions = ["Who art thou?", "And I?"]
    result = subprocess.run(
        [*command, "--max-new-tokens", "4"], input="\n".join(questions), capture_output=True, text=True
    )
    assert (result.returncode, result.stderr) == (0, "")
    conversation = chat.Conversation(chat.open_model(talking, operator_library), {}, 4)
    assert result.stdout == "".join("".join(conversation.ask(question)) + "\n" for question in questions)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--pompt", "a"], "unrecognized arguments: --pompt a; --help lists the options"),
        (["--raw"], "--raw continues a text: give --prompt; --help lists the options"),
        (["--top-p", "0"], "--top-p is 0.0, which is out of range; --help lists the options"),
        (["--temperature", "nan"], "--temperature is nan, which is out of range; --help lists the options"),
        (["--library", "none.so"], "none.so: no such library; `bitnet-onnx ops --path` prints where it is"),
        (["--prompt", "a"], "the package has no chat template that can be used (Empty chat template.): give --raw"),
        ([*RAW, "--context", "3"], "4 tokens leave no room in the context of 3: give a larger --context"),
        ([*RAW, "--context", "8"], "the context of 8 tokens is full: give a larger --context"),
        ([*RAW, "--context", "1025"], "max_length (1025) cannot be greater than model context_length (1024)"),
    ],
)
def test_bad_options_end_with_one_line(refused: Refused, options: list[str], line: str) -> None:
    assert refused(BITNET_TINY, *options) == line


def test_packages_that_lack_something_end_with_one_line(refused: Refused, package: Path) -> None:
    (package / "model.onnx.data").unlink()
    line = refused(package, *RAW)
    assert line == f"{package}/model.onnx.data is missing, which holds the weights: copy the package as a whole"
    (package / "genai_config.json").unlink()
    line = f"{package} is not a package: it has no genai_config.json; `bitnet-onnx convert` makes packages"
    assert refused(package, *RAW) == line


def test_another_library_ends_with_one_line(refused: Refused, tmp_path: Path) -> None:
    library = tmp_path / "libbitnet_ops.so"
    library.write_bytes(b"\x7fELF of another system")
    assert "libbitnet_ops.so" in refused(BITNET_TINY, *RAW, "--library", library)


@pytest.mark.zoo
def test_a_model_that_can_talk(chat: ModuleType, zoo_package: Path, operator_library: Path) -> None:
    conversation = chat.Conversation(chat.open_model(zoo_package, operator_library), {}, 24)
    assert "Tokyo" in "".join(conversation.ask("What is the capital of Japan?"))
    assert "Paris" in "".join(conversation.ask("And of France?"))
