"""The parts of examples/cpp that need no ONNX Runtime, under sanitizers: tokenizer, JSON and sampling."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import swift_fixtures
import unicode_ranges
from cpp_example import COMPILER, SOURCE
from greedy import BITNET_TINY

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the sanitizer options are those of GCC and Clang")

_SOURCES = ("json.cc", "sampler.cc", "tokenizer.cc", "words.cc")
_SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
#: What the random texts of one tokenizer are, beside the fixed ones.
_RANDOM_TEXTS = 200


@pytest.fixture(scope="module")
def cpp_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if COMPILER is None:
        pytest.skip("no C++ compiler is installed")
    program = tmp_path_factory.mktemp("parts") / "cpp_parts"
    sources = [Path(__file__).with_name("cpp_parts.cc"), *(SOURCE / name for name in _SOURCES)]
    options = ["-std=c++17", "-Wall", "-Wextra", "-Werror", *_SANITIZE, f"-I{SOURCE}"]
    built = subprocess.run([COMPILER, *options, *sources, "-o", program], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return program


def ask(program: Path, directory: Path, requests: Sequence[Mapping[str, Any]]) -> subprocess.CompletedProcess[str]:
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    return subprocess.run([program, directory], input=lines, capture_output=True, text=True, timeout=60)


def covered() -> dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """tokenizer.json and tokenizer_config.json of the covered kinds; tokens that swallow spaces are not."""
    tiny = [json.loads((BITNET_TINY / name).read_text()) for name in ("tokenizer.json", "tokenizer_config.json")]
    found = {"bitnet-tiny": (tiny[0], tiny[1])}
    for name in ("smollm2", "llama3", "bitnet"):
        form = swift_fixtures.forms()[name]
        added = [token for token in form.tokenizer["added_tokens"] if not token["lstrip"]]
        config = {name: value for name, value in form.config.items() if name != "chat_template"}
        found[name] = ({**form.tokenizer, "added_tokens": added}, config)
    return found


def write(directory: Path, tokenizer: Mapping[str, Any], config: Mapping[str, Any]) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("name", covered())
def test_it_gives_what_the_library_gives(cpp_parts: Path, tmp_path: Path, name: str) -> None:
    tokenizer, config = covered()[name]
    texts = [*swift_fixtures.TEXTS, *swift_fixtures.random_texts(_RANDOM_TEXTS, seed=7)]
    golden = swift_fixtures.golden(tokenizer, config, texts)
    (begins,) = (entry["special"] for entry in golden["encode"] if not entry["text"])
    requests: list[dict[str, Any]] = []
    expected: list[str] = []
    for entry in golden["encode"]:
        requests += [{"text": entry["text"], "special": special} for special in (True, False)]
        expected += [" ".join(map(str, ids)) for ids in (entry["special"], begins + entry["plain"])]
    for entry in golden["decode"]:
        requests.append({"ids": entry["ids"]})
        expected.append(entry["text"])
    result = ask(cpp_parts, write(tmp_path / "t", tokenizer, config), requests)
    assert result.returncode == 0, result.stderr
    for request, wanted, line in zip(requests, expected, result.stdout.splitlines(), strict=True):
        if "text" in request:
            assert line.strip() == wanted, request
        else:
            assert bytes.fromhex(line.replace("/", "")).decode() == wanted, request
            for piece in line.split("/"):
                bytes.fromhex(piece).decode()  # whole characters only


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("qwen2", "normalizer NFC"),
        ("gpt4o", "pre_tokenizer Split with this pattern"),
        ("neox", "normalizer NFC"),
        ("llama2", "normalizer Sequence"),
        ("tinyllama", "decoder Sequence"),
        ("smollm2", "added token <mask> with lstrip"),
    ],
)
def test_other_kinds_are_refused_by_name(cpp_parts: Path, tmp_path: Path, name: str, part: str) -> None:
    form = swift_fixtures.forms()[name]
    result = ask(cpp_parts, write(tmp_path / "t", form.tokenizer, form.config), [])
    assert result.returncode == 2
    assert result.stderr == f"tokenizer.json: {part} is not covered by this example: give token ids with --ids\n"


def broken() -> dict[str, bytes]:
    """Files that are no tokenizer.json, each another way."""
    whole, _ = covered()["llama3"]
    model = whole["model"]
    vocabulary = dict(model["vocab"])
    first = next(iter(vocabulary))

    def changed(**members: object) -> bytes:
        return json.dumps({**whole, "model": {**model, **members}}).encode()

    text = json.dumps(whole).encode()
    cuts = {f"cut at {at}": text[:at] for at in range(1, len(text), len(text) // 23)}
    return {
        **cuts,
        "empty": b"",
        "deep": b"[" * 100_000,
        "number": b'{"model": {"vocab": {"a": 1e999}}}',
        "surrogate": b'{"a": "\\ud800"}',
        "escape": b'{"a": "\\x"}',
        "not UTF-8": text.replace(b"hello", b"\xff\xfe", 1),
        "ids": changed(vocab={**vocabulary, first: -1}),
        "large id": changed(vocab={**vocabulary, first: 2**40}),
        "fraction": changed(vocab={**vocabulary, first: 0.5}),
        "merge of one": changed(merges=[["a"]]),
        "unknown merge": changed(merges=[["\u2603", "\u2603"]]),
        "vocabulary": changed(vocab=[]),
    }


def test_broken_files_end_with_one_line(cpp_parts: Path, tmp_path: Path) -> None:
    directory = write(tmp_path / "t", *covered()["llama3"])
    for name, content in broken().items():
        (directory / "tokenizer.json").write_bytes(content)
        result = ask(cpp_parts, directory, [])
        assert result.returncode == 2, (name, result.stderr)
        assert result.stderr.count("\n") == 1, name
        assert "tokenizer.json" in result.stderr, name


def test_ids_that_are_no_tokens_add_nothing(cpp_parts: Path, tmp_path: Path) -> None:
    directory = write(tmp_path / "t", *covered()["bitnet-tiny"])
    result = ask(cpp_parts, directory, [{"ids": [277, 2**40, -5, 4096, 0]}])
    assert result.stdout == "/" + b" of".hex() + "/////\n"


def test_long_words_take_no_square_of_their_length(cpp_parts: Path, tmp_path: Path) -> None:
    directory = write(tmp_path / "t", *covered()["bitnet-tiny"])
    ids = ask(cpp_parts, directory, [{"text": "the" * 100_000}]).stdout.split()
    assert 100_000 <= len(ids) <= 300_001


def test_the_table_of_letters_is_that_of_the_library() -> None:
    assert unicode_ranges.TABLE.read_text("utf-8") == unicode_ranges.table()


def draws(program: Path, directory: Path, **request: object) -> list[int]:
    result = ask(program, directory, [{"temperature": 1, "top_p": 1, "seed": 0, "draws": 1, **request}])
    assert result.returncode == 0, result.stderr
    return [int(token) for token in result.stdout.split()]


def test_tokens_are_drawn_as_often_as_their_probabilities_say(cpp_parts: Path, tmp_path: Path) -> None:
    directory = write(tmp_path / "t", *covered()["bitnet-tiny"])
    logits, count = np.array([0.5, 2.0, -1.0, 1.0, -80.0]), 20_000
    for temperature, top_p, kept in ((1.0, 1.0, [0, 1, 2, 3]), (0.5, 1.0, [0, 1, 2, 3]), (2.0, 0.7, [1, 3, 0])):
        weights = np.zeros(5)
        weights[kept] = np.exp(logits[kept] / temperature)
        expected = weights / weights.sum()
        found = draws(
            cpp_parts, directory, logits=logits.tolist(), temperature=temperature, top_p=top_p, draws=count, seed=3
        )
        # Five standard deviations of a count; what is not kept is never drawn.
        deviation = np.sqrt(expected * (1 - expected) * count)
        assert np.all(np.abs(np.bincount(found, minlength=5) - expected * count) <= 5 * deviation)


def test_the_most_probable_token_is_taken_and_what_is_no_number_refused(cpp_parts: Path, tmp_path: Path) -> None:
    directory = write(tmp_path / "t", *covered()["bitnet-tiny"])
    assert draws(cpp_parts, directory, logits=[1, 3, 3, 2], temperature=0) == [1]
    assert draws(cpp_parts, directory, logits=[1, 3, 3, 2], top_p=1e-9) == [1]
    request = {"logits": [1, None], "temperature": 0, "top_p": 1}
    result = ask(cpp_parts, directory, [request])
    assert (result.returncode, result.stderr) == (2, "the model gives logits that are no numbers\n")
