"""`bitnet-onnx infer`."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from tiny_models import TINY, write_checkpoint

from bitnet_onnx.cli import infer as command
from bitnet_onnx.converters import convert
from bitnet_onnx.package_format import KV_SCALES
from bitnet_onnx.runtime import SamplingParameters, TokenStream, load

TEMPLATE = "{% for message in messages %}{{ message['role'][0] }}:{{ message['content'] }} {% endfor %}a:"


@pytest.fixture(scope="module")
def chat_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("chat")
    source = write_checkpoint(root / "source", TINY["untied_gqa"])
    (source / "chat_template.jinja").write_text(TEMPLATE)
    convert(source, root / "package")
    return root / "package"


@pytest.fixture(scope="module")
def ids(tiny_package: Path) -> list[int]:
    return list(load(tiny_package).generate([1, 42, 7], SamplingParameters(max_new_tokens=5)).ids)


def answer(text: str) -> dict:
    found = json.loads(text)
    assert set(found) == {"ids", "text", "finish_reason", "timings"}
    return found


def test_ids_from_a_file(run, tiny_package: Path, tmp_path: Path, ids: list[int]) -> None:
    (tmp_path / "ids.json").write_text("[1, 42, 7]")
    arguments = ("infer", tiny_package, "--max-new-tokens", "5", "--json", "--ids-file")
    found = answer(run(*arguments, tmp_path / "ids.json").out)
    assert found["ids"] == ids
    assert found["finish_reason"] in ("length", "stop")
    assert found["timings"]["prefill_tokens"] == 3
    assert answer(run(*arguments, "-", stdin=b"[1, 42, 7]").out)["ids"] == ids


def test_a_prompt(run, tiny_package: Path) -> None:
    arguments = ("infer", tiny_package, "--prompt", "abc", "--max-new-tokens", "8", "--threads", "1")
    found = answer(run(*arguments, "--json").out)
    assert len(found["ids"]) <= 8
    shown = run(*arguments)
    assert shown.status == 0
    assert shown.out == found["text"] + "\n"


def test_keys_and_values_as_int8(run, tiny_package: Path) -> None:
    arguments = ("infer", tiny_package, "--prompt", "abc", "--max-new-tokens", "8", "--threads", "1", "--json", "--kv")
    result = run(*arguments, "int8")
    assert result.status == 0
    assert "scales of int8 keys and values measured in" in " ".join(result.err.split())
    assert (
        answer(result.out)["timings"]["prefill_tokens"]
        == answer(run(*arguments, "float32").out)["timings"]["prefill_tokens"]
    )
    assert not (tiny_package / KV_SCALES).exists()


def test_a_seed_repeats(run, tiny_package: Path) -> None:
    arguments = ("infer", tiny_package, "--prompt", "a", "--max-new-tokens", "8", "--json", "--temperature", "2")
    options = ("--top-k", "50", "--top-p", "0.9", "--min-p", "0.01", "--repetition-penalty", "1.1", "--seed")
    one, same, other = (answer(run(*arguments, *options, seed).out)["ids"] for seed in ("1", "1", "2"))
    assert one == same
    assert one != other


def test_a_chat_answers_one_prompt(run, chat_package: Path) -> None:
    found = answer(run("infer", chat_package, "--chat", "--prompt", "hi", "--max-new-tokens", "4", "--json").out)
    plain = answer(run("infer", chat_package, "--prompt", "u:hi a:", "--max-new-tokens", "4", "--json").out)
    assert found["ids"] == plain["ids"]


@pytest.mark.parametrize(("options", "penalty"), [((), 1.1), (("--repetition-penalty", "1"), 1.0)])
def test_a_conversation_on_a_pipe(run, chat_package: Path, options: tuple[str, ...], penalty: float) -> None:
    """Each turn sees the ones before it, and a conversation discourages repeats unless told otherwise."""
    stdin = b"hello\r\nand \xff?\n\nnever read\n"
    result = run("infer", chat_package, "--chat", "--max-new-tokens", "24", *options, stdin=stdin)
    assert result.status == 0
    model = load(chat_package)
    parameters = SamplingParameters(max_new_tokens=24, repetition_penalty=penalty)
    messages: list[dict[str, object]] = []
    expected = ""
    for text in ("hello", "and \ufffd?"):
        messages.append({"role": "user", "content": text})
        generation = model.chat(messages, parameters)
        messages.append({"role": "assistant", "content": generation.text})
        expected += generation.text + "\n"
    assert result.out == expected


def test_a_new_conversation_and_one_too_long(run, chat_package: Path) -> None:
    lines = [b"hello", b"/new", b"hello", b"x" * 600, b"hello"]
    result = run("infer", chat_package, "--chat", "--max-new-tokens", "1", "--seed", "3", stdin=b"\n".join(lines))
    assert result.status == 0
    assert "the conversation starts anew" in result.err
    model = load(chat_package)
    one = model.chat([{"role": "user", "content": "hello"}], SamplingParameters(max_new_tokens=1)).text
    assert result.out == 3 * f"{one}\n"


def test_an_interrupt_ends_a_single_answer_with_130(run, tiny_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _interrupt(monkeypatch, after=1)
    for options in ((), ("--json",)):
        result = run("infer", tiny_package, "--prompt", "a", "--max-new-tokens", "8", *options)
        assert result.status == 130
        assert result.err.splitlines()[-1] == "error: interrupted"


def test_an_interrupt_ends_only_the_answer_of_a_conversation(
    run, chat_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _interrupt(monkeypatch, after=1)
    result = run("infer", chat_package, "--chat", "--max-new-tokens", "8", stdin=b"a\nb\n")
    assert result.status == 0
    assert result.out.count("\n") == 2


def _interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    step = TokenStream.__next__

    def interrupted(self: TokenStream) -> object:
        if len(self.result().ids) >= after:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(TokenStream, "__next__", interrupted)


def test_on_a_terminal_prompts_and_timings_are_shown(run, chat_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(command, "error_console", lambda: Console(stderr=True, force_terminal=True))
    monkeypatch.setattr(io, "TextIOWrapper", Terminal)
    result = run("infer", chat_package, "--chat", "--max-new-tokens", "2", stdin=b"a\n")
    assert result.status == 0
    assert "you>" in result.err
    assert "tokens read at" in result.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to do: give --prompt TEXT, --chat, --ids-file FILE or --batch FILE"),
        (["--ids-file", "x", "--prompt", "a"], "--ids-file excludes --prompt and --chat"),
        (["--ids-file", "x", "--chat"], "--ids-file excludes --prompt and --chat"),
        (["--chat", "--json"], "--json answers one prompt"),
        (["--prompt", "a", "--temperature", "nan"], "temperature is nan"),
        (["--prompt", "a", "--temperature", "-1"], "temperature is -1"),
        (["--prompt", "a", "--temperature", "hot"], "'hot' is not a valid float"),
        (["--prompt", "a", "--top-k", "-1"], "top_k is -1"),
        (["--prompt", "a", "--top-p", "0"], "top_p is 0"),
        (["--prompt", "a", "--top-p", "inf"], "top_p is inf"),
        (["--prompt", "a", "--min-p", "1"], "min_p is 1"),
        (["--prompt", "a", "--repetition-penalty", "0"], "repetition_penalty is 0"),
        (["--prompt", "a", "--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["--prompt", "a", "--seed", "-1"], "seed is -1"),
        (["--prompt", "a", "--stop", ""], "stop string"),
        (["--prompt", "a", "--threads", "0"], "0 is not in the range x>=1"),
        (["--prompt", "a", "--threads", "5000"], "threads is 5000"),
        (["--prompt", "a", "--kv", "int4"], "'int4' is not one of 'float32', 'int8'"),
        (["--ids-file", "nowhere.json"], "nowhere.json: cannot be read: No such file"),
        (["--ids-file", "."], "cannot be read: Is a directory"),
    ],
)
def test_bad_options(
    refused, tiny_package: Path, monkeypatch, tmp_path: Path, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused("infer", tiny_package, *options)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON"),
        (b"[1, 2", "not JSON"),
        (b"\xff\xfe[", "not JSON"),
        (b"[" * 100000, "not JSON"),
        (b"[" + b"9" * 5000 + b"]", "not JSON"),
        (b"{}", "expected a JSON list of token ids, such as [1, 42, 7]"),
        (b"[1.0]", "expected a JSON list"),
        (b"[true]", "expected a JSON list"),
        (b"[NaN]", "expected a JSON list"),
        (b'["1"]', "expected a JSON list"),
        (b"[]", "the prompt is empty"),
        (b"[515]", "token id 515 is outside the model's vocabulary of 515"),
        (b"[-1]", "token id -1 is outside"),
        (b"[18446744073709551616]", "token id 18446744073709551616 is outside"),
        (json.dumps([3] * 513).encode(), "513 tokens, more than the model's context of 512"),
    ],
)
def test_bad_ids(run, tiny_package: Path, tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "ids").write_bytes(data)
    for arguments in ((tmp_path / "ids",), ("-",)):
        result = run("infer", tiny_package, "--ids-file", *arguments, stdin=data)
        assert (result.status, result.out) == (2, "")
        # Without the operator library one warning may stand before it.
        assert message in result.err.splitlines()[-1]
        assert "Traceback" not in result.err


def test_an_endless_file_of_ids(refused, tiny_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_IDS_LIMIT", 1000)
    if not Path("/dev/zero").exists():
        pytest.skip("this system has no /dev/zero")
    assert "larger than the limit of 1000 bytes" in refused("infer", tiny_package, "--ids-file", "/dev/zero")
    assert "larger than the limit" in refused("infer", tiny_package, "--ids-file", "-", stdin=bytes(1001))


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_what_is_no_package(refused, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    assert name in refused("infer", tmp_path / name, "--prompt", "a")


def test_a_chat_without_a_template(run, tiny_package: Path) -> None:
    for stdin in ({}, {"stdin": b"hello\n"}):
        options = () if stdin else ("--prompt", "a")
        result = run("infer", tiny_package, "--chat", *options, **stdin)
        assert result.status == 2
        assert "no chat template" in result.err.splitlines()[-1]


def test_a_prompt_that_is_not_unicode(run, tiny_package: Path) -> None:
    result = run("infer", tiny_package, "--prompt", "\udcff", "--max-new-tokens", "1")
    assert result.status in (0, 2)
    assert "Traceback" not in result.err
