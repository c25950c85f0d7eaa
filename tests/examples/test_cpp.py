"""The program of examples/cpp: its text and tokens, its stream, where it keeps keys and values, and its errors."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cpp_example import BUILT, COMPILER, NEEDS, ROOT, SOURCE, commands, link, program, run, shell, taken_library
from greedy import BITNET_TINY, PROMPT, PROMPT_IDS, TEXT, TOKENS

_IDS = ",".join(map(str, PROMPT_IDS))


def generate(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run(program(), *arguments)


def text(*arguments: object) -> str:
    result = generate(BITNET_TINY, "--prompt", PROMPT, *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return shutil.copytree(BITNET_TINY, tmp_path / "package")


def test_it_continues_a_text(operator_library: Path) -> None:
    # CMake's package has named the library.
    assert text("--max-new-tokens", 32) == TEXT + "\n"
    assert text("--max-new-tokens", 32, "--library", operator_library, "--threads", 1) == TEXT + "\n"


def test_ids_in_and_ids_out_need_no_tokenizer(package: Path) -> None:
    (package / "tokenizer.json").unlink()
    result = generate(package, "--ids", _IDS, "--print-ids", "--max-new-tokens", 8)
    assert result.returncode == 0, result.stderr
    assert tuple(map(int, result.stdout.split())) == TOKENS[:8]


def test_keys_and_values_stay_in_place() -> None:
    result = generate(BITNET_TINY, "--prompt", PROMPT, "--max-new-tokens", 32, "--context", 64, "--stats")
    assert result.stdout == TEXT + "\n"
    # Six layers of keys and values, two heads of 64 numbers: the last of the 36 tokens is not read any more.
    assert f"keys and values: 35 of 64 tokens, {6 * 2 * 2 * 64 * 64 * 4} bytes, in place\n" in result.stderr
    assert f"operators: {taken_library()}\n" in result.stderr
    assert re.search(r"^opened in [0-9.]+ s; read 4 tokens in [0-9.]+ s; wrote 32 in [0-9.]+ s$", result.stderr, re.M)


def test_the_function_bodies_run_without_the_library() -> None:
    result = generate(BITNET_TINY, "--prompt", PROMPT, "--max-new-tokens", 8, "--library", "", "--stats")
    assert TEXT.startswith(result.stdout[:-1])
    assert "operators: function bodies\n" in result.stderr


def test_the_text_arrives_in_pieces() -> None:
    command = [program(), BITNET_TINY, "--prompt", PROMPT, "--max-new-tokens", "400"]
    pieces = []
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while piece := os.read(process.stdout.fileno(), 1 << 16):
            pieces.append(piece)
    assert process.returncode == 0
    assert b"".join(pieces).decode().startswith(TEXT)
    assert len(pieces) > 20


def test_a_seed_repeats_a_text() -> None:
    options = ("--max-new-tokens", 40, "--temperature", 0.9, "--top-p", 0.95)
    first, again, other = (text(*options, "--seed", seed) for seed in (1, 1, 2))
    assert first == again != other
    # So little that only the most probable token is left.
    assert text("--max-new-tokens", 32, "--temperature", 0.9, "--top-p", 1e-6) == TEXT + "\n"


def test_it_stops_at_the_end_token(package: Path) -> None:
    config = package / "genai_config.json"
    content = config.read_text()
    config.write_text(content.replace('"eos_token_id": 1', f'"eos_token_id": [1, {TOKENS[3]}]'))
    result = generate(package, "--ids", _IDS, "--print-ids")
    assert tuple(map(int, result.stdout.split())) == TOKENS[:3]
    assert result.returncode == 0


def refused(*arguments: object) -> str:
    result = generate(*arguments)
    assert result.returncode == 2, result
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("bitnet_generate: ")
    return result.stderr.removeprefix("bitnet_generate: ").removesuffix("\n")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--prompt"], "--prompt needs a value"),
        (["--pompt", "a"], "unknown option --pompt; --help lists the options"),
        (["a"], "unexpected argument 'a': one package, options begin with --"),
        ([], "give either --prompt or --ids"),
        (["--prompt", "a", "--ids", "1"], "give either --prompt or --ids"),
        (["--ids", "1,x"], "--ids is 'x', expected a whole number from 0 to 2147483647"),
        (["--ids", "4096"], "token 4096 is not in the vocabulary of 4096"),
        (["--ids", "1", "--temperature", "nan"], "--temperature is 'nan', expected a number from 0 to 1000"),
        (["--ids", "1", "--top-p", "0"], "--top-p is '0', expected a number above 0 to 1"),
        (
            ["--ids", "1", "--max-new-tokens", "0"],
            "--max-new-tokens is '0', expected a whole number from 1 to 2147483647",
        ),
        (["--prompt", "a", "--context", "1025"], "a context of 1025 tokens: the model has 1 to 1024"),
        (
            ["--ids", "1,2,3", "--context", "2"],
            "the prompt has 3 tokens, more than the context of 2 tokens: give a larger --context",
        ),
    ],
)
def test_bad_options_end_with_one_line(options: list[str], line: str) -> None:
    assert refused(BITNET_TINY, *options) == line


def test_a_full_context_ends_the_text_with_one_line() -> None:
    result = generate(BITNET_TINY, "--prompt", PROMPT, "--context", 10)
    assert result.returncode == 2
    assert TEXT.startswith(result.stdout[:-1])
    assert result.stdout.count("\n") == 1
    assert result.stderr == "bitnet_generate: the context of 10 tokens is full: give a larger --context\n"


def test_a_model_without_its_data_file_is_refused(package: Path) -> None:
    (package / "model.onnx.data").unlink()
    line = refused(package, "--prompt", PROMPT)
    assert line == f"{package}/model.onnx.data is missing, which holds the weights: copy the package as a whole"


def test_a_broken_graph_is_refused(package: Path) -> None:
    (package / "model.onnx").write_bytes(b"\x08")
    assert refused(package, "--prompt", PROMPT).startswith(f"{package}/model.onnx cannot be opened: ")


def test_a_library_that_is_missing_or_another_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "libbitnet_ops.so"
    line = refused(BITNET_TINY, "--prompt", PROMPT, "--library", missing)
    assert line == f"{missing}: no such library; `bitnet-onnx ops --path` prints where it is"
    missing.write_bytes(b"\x7fELF of another system")
    line = refused(BITNET_TINY, "--prompt", PROMPT, "--library", missing)
    assert line.startswith(f"{missing} cannot be used here: ")


_OLD_RUNTIME = """
typedef struct { const void* (*get_api)(unsigned); const char* (*version)(void); } Base;
static const void* get_api(unsigned version) { (void)version; return 0; }
static const char* version(void) { return "1.2.3"; }
static const Base base = {get_api, version};
const Base* OrtGetApiBase(void) { return &base; }
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the loader of Linux takes libraries from LD_LIBRARY_PATH")
def test_an_older_runtime_is_refused(tmp_path: Path) -> None:
    needed = re.search(r"VERS_[0-9.]+", program().read_bytes().decode("latin-1"))
    assert needed is not None
    (tmp_path / "old.c").write_text(_OLD_RUNTIME)
    (tmp_path / "exports.map").write_text(needed[0] + " { global: OrtGetApiBase; };")
    options = ["-shared", "-fPIC", f"-Wl,--version-script={tmp_path / 'exports.map'}", "-xc", tmp_path / "old.c"]
    built = run(COMPILER, "-o", tmp_path / "libonnxruntime.so.1", *options)
    assert built.returncode == 0, built.stderr
    result = run("env", f"LD_LIBRARY_PATH={tmp_path}", program(), BITNET_TINY, "--prompt", PROMPT)
    assert result.returncode == 2
    line = r"bitnet_generate: ONNX Runtime 1\.2\.3 is older than this program, which is built for 1\.\d+\n"
    assert re.fullmatch(line, result.stderr)


def test_configurations_that_lie_are_refused(package: Path) -> None:
    path = package / "genai_config.json"
    content = path.read_text()
    for right, wrong, line in (
        ('"vocab_size": 4096', '"vocab_size": -1', "vocab_size is missing or not a number from 1 to 16777216"),
        ('"head_size": 64', '"head_size": 1e30', "head_size is missing or not a number from 1 to 4096"),
        ('"max_length"', '"min_length"', "max_length is missing or not a number from 1 to 67108864"),
    ):
        path.write_text(content.replace(right, wrong))
        assert refused(package, "--prompt", PROMPT) == f"{path}: {line}"
    # Sizes that are possible and not the graph's: the runtime compares them.
    for right, wrong in (
        ('"head_size": 64', '"head_size": 32'),
        ('"vocab_size": 4096', '"vocab_size": 4000'),
        ('"num_hidden_layers": 6', '"num_hidden_layers": 7'),
        ('"num_hidden_layers": 6', '"num_hidden_layers": 5'),
    ):
        path.write_text(content.replace(right, wrong))
        assert refused(package, "--prompt", PROMPT).startswith(str(package)), wrong
    path.write_text("{}")
    refused(package, "--prompt", PROMPT)
    path.unlink()
    assert refused(package, "--prompt", PROMPT) == f"{path} cannot be read: a package has it"
    assert refused(package / "none", "--prompt", "a").startswith(f"{package / 'none'}: no such directory")


PAGES = (SOURCE / "README.md", ROOT / "docs/deploy/cpp.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_the_pages_run(page: Path) -> None:
    program()
    outputs = []
    for command in commands(page, NEEDS):
        if not command.startswith(("bitnet-onnx ops", "cmake")):  # `program` has run those of the README
            done = shell(command)
            assert done.returncode == 0, command + "\n" + done.stderr
            outputs.append(done.stdout)
    assert outputs[0] == TEXT + "\n"
    assert outputs[0] in page.read_text("utf-8")


def test_the_page_quotes_the_decoder() -> None:
    source = (SOURCE / "decoder.cc").read_text("utf-8")
    quotes = re.findall(r"^```cpp\n(.*?)^```$", PAGES[1].read_text("utf-8"), re.M | re.S)
    assert len(quotes) == 2
    assert all(quote in source for quote in quotes)


@pytest.mark.zoo
def test_a_conversation_is_a_text_with_control_tokens(zoo_package: Path) -> None:
    program()
    (BUILT / "models").mkdir(exist_ok=True)
    link(BUILT / "models/smollm2", zoo_package)
    convert, answer = commands(PAGES[0], f"{NEEDS} and SmolLM2")
    assert convert == "bitnet-onnx convert smollm2-135m-instruct models/smollm2"
    done = shell(answer)
    assert done.returncode == 0, done.stderr
    assert "Tokyo" in done.stdout
