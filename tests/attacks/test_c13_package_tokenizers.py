"""Class 13, the tokenizer of a package from a stranger: one that ends the process, or takes all memory or time."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import bounded_command
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_package import byte_tokenizer, write_package
from tokenizer_bombs import BOMBS, charsmap, split, with_part
from tokenizers import Tokenizer, models

from bitnet_onnx.converters import convert
from bitnet_onnx.errors import InputError, PackageError
from bitnet_onnx.json_input import outside_strings
from bitnet_onnx.limited_process import Limits
from bitnet_onnx.runtime import PackageInfo, _tokenizer_file, _tokenizer_trial
from bitnet_onnx.runtime._tokenizer_file import check_tokenizer_file
from bitnet_onnx.runtime.tokenizer import TextTokenizer, parse_tokenizer


@pytest.fixture
def fresh_package(tmp_path: Path) -> Path:
    directory = tmp_path / "package"
    directory.mkdir()
    return write_package(directory)


def parts_of(data: bytes) -> dict[str, Any] | None:
    return _tokenizer_file.plain_parts(data, outside_strings(data))


def replace(pattern: str, content: str, kind: str = "String") -> dict[str, object]:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def compact(document: object) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def document(**parts: object) -> dict[str, Any]:
    """A byte tokenizer as JSON, the model last."""
    found: dict[str, Any] = json.loads(byte_tokenizer().to_str())
    model = found.pop("model")
    return {**found, **parts, "model": model}


def test_what_conversion_writes_is_loaded_without_a_process(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_tokenizer_file, "run_limited", None)
    for name in ("untied_gqa", "bitnet"):
        package = convert(tiny_checkpoint(name), tmp_path / name).path
        assert TextTokenizer(PackageInfo.open(package)).encode("a", parse_special=False, add_bos=False)
    parts = parts_of(compact(document()))
    assert parts is not None
    assert "model" not in parts


@pytest.mark.zoo
def test_the_zoos_tokenizer_is_loaded_without_a_process(zoo_package: Path) -> None:
    assert parts_of((zoo_package / "tokenizer.json").read_bytes()) is not None


MODEL = document()["model"]
STRANGE = {
    "a character map": document(normalizer=json.loads(charsmap(b"\xff" * 4))["normalizer"]),
    "long patterns": document(pre_tokenizer=json.loads(split("a" * 9000))["pre_tokenizer"]),
    "long added tokens": document(added_tokens=[{"id": 0, "content": "a" * (1 << 20)}, {"id": 1, "content": "b"}]),
    "another model": {**document(), "model": {"type": "Unigram", "vocab": [["a", 0.0]]}},
    "two types": {**document(), "model": {**MODEL, "vocab": {}, "x": {"type": "Unigram"}}},
    "parts behind the model": {"version": "1.0", "model": MODEL, "normalizer": {}},
    "no parts": {"model": MODEL},
}


@pytest.mark.parametrize("name", STRANGE)
def test_whatever_could_cost_more_is_tried_first(name: str) -> None:
    assert parts_of(compact(document())) is not None
    assert parts_of(compact(STRANGE[name])) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"type":"BPE",', b'"type": "BPE",'),
        (b'"type":"BPE",', b'"type":"BPE", '),
        (b'"type":"BPE",', b'"type":"BPE","t\\u0079pe":"Unigram",'),
        (b'"type":"BPE",', b'"type":"BPE","type":"Unigram",'),
        (b'"version":"1.0",', b'"version":",\\"model\\":{\\"type\\":\\"BPE\\",\\"",'),
        (b'"version":"1.0",', b'"version":"1.0","normalizer":{},'),
        (b'"version":"1.0",', b'"version":"1.0","model":{},'),
        (b"}}", b'},"normalizer":{}}'),
        (b"}}", b"}}}"),
        (b"}}", b"}"),
    ],
)
def test_a_form_that_only_looks_like_ours_is_tried_first(old: bytes, new: bytes) -> None:
    data = compact(document())
    at = data.rindex(old)
    changed = data[:at] + new + data[at + len(old) :]
    # A string that holds the beginning of a model is a string.
    assert (parts_of(changed) is None) is (b'\\"' not in new)


def test_tokens_of_quotes_and_backslashes_are_usual() -> None:
    vocabulary = {
        text: index for index, text in enumerate(["\\u", "\\", '"type":"', '\\"', "\n", "{", "]}", "\\\\u0079"])
    }
    assert parts_of(compact(document() | {"model": {**MODEL, "vocab": vocabulary}})) is not None


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 1 << 16),
            st.integers(0, 12),
            st.sampled_from(
                [b"", b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"null", b"9" * 30, b'"Regex":"(a"', b'"a":{}']
            ),
        ),
        max_size=4,
    )
)
def test_what_is_taken_for_our_form_loads_or_is_refused(edits: list[tuple[int, int, bytes]]) -> None:
    data = compact(document())
    for place, length, new in edits:
        at = place % len(data)
        data = data[:at] + new + data[at + length :]
    if parts_of(data) is not None:
        # Were it to end the process, no test would be left to say so.
        with suppress(PackageError):
            parse_tokenizer(data, "tokenizer.json")


def test_a_name_in_an_unfinished_string_begins_no_model() -> None:
    assert parts_of(b'{"version":"1.0' + compact(document())[1:]) is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces the limit on the address space")
@pytest.mark.parametrize("name", ["character map of 4 GB", "character map that panics", "long added tokens", "merges"])
def test_the_command_line_with_a_bomb_in_a_package(tmp_path: Path, fresh_package: Path, name: str) -> None:
    (fresh_package / "tokenizer.json").write_bytes(BOMBS[name])
    (tmp_path / "empty").mkdir()
    ended = bounded_command.run_bounded("infer", fresh_package, "--prompt", "a", folder=tmp_path / "empty")
    assert (ended.status, ended.out) == (2, "")
    (line,) = ended.err.splitlines()
    assert "tokenizer.json: " in line
    assert len(line) < 600


def test_deep_json_and_too_many_values_are_refused_unparsed() -> None:
    with pytest.raises(PackageError, match=r"t\.json: JSON nests deeper than 64 levels"):
        check_tokenizer_file(b'{"a":' * 100_000, "t.json")
    with pytest.raises(PackageError, match=r"t\.json: JSON of 2500002 values exceeds"):
        check_tokenizer_file(b'{"a":[' + b"," * 2_500_000 + b"]}", "t.json")


def test_a_trial_without_end_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "worker.py").write_text("import time; time.sleep(600)", encoding="utf-8")
    monkeypatch.setattr(_tokenizer_file, "_TRIAL", tmp_path / "worker.py")
    monkeypatch.setattr(_tokenizer_file, "_LIMITS", Limits(megabytes=900, seconds=1))
    with pytest.raises(PackageError, match=r"t\.json: not a usable tokenizer: loading it takes over 1 s or 900 MB"):
        check_tokenizer_file(b"{}", "t.json")


def test_another_model_is_tried_and_loaded(fresh_package: Path) -> None:
    inner = Tokenizer(models.WordLevel({"a": 5, "b": 6}, unk_token="b"))
    (fresh_package / "tokenizer.json").write_text(inner.to_str(pretty=True))
    opened = TextTokenizer(PackageInfo.open(fresh_package))
    assert opened.encode("a", parse_special=False, add_bos=False) == [5]


def test_the_trial_answers_in_this_process_too() -> None:
    rule = replace("a", "b")
    assert _tokenizer_trial.answer(with_part(normalizer=rule)) == {"parts": {"normalizer": rule, "decoder": None}}
    assert "error" in _tokenizer_trial.answer(b"{}")
    twice = b'{"normalizer":null,' + with_part()[1:-1] + b',"normalizer":null}'
    assert "twice" in str(_tokenizer_trial.answer(twice)["error"])


GROWING = [
    {"type": "Sequence", "normalizers": [replace("a", "a" * 5)] * 3},
    replace("a", "a" * 65),
    replace("", "a" * 64, "Regex"),
]


@pytest.mark.parametrize("rule", GROWING)
@pytest.mark.parametrize("plain", [True, False])
def test_texts_that_grow_are_refused(rule: dict[str, Any], plain: bool) -> None:
    dump = compact if plain else json.dumps
    for name in ("normalizer", "decoder"):
        sequence = {"type": "Sequence", "decoders": rule["normalizers"]} if "normalizers" in rule else rule
        data = dump(document(**{name: rule if name == "normalizer" else sequence}))
        data = data if isinstance(data, bytes) else data.encode()
        assert (parts_of(data) is None) is not plain
        with pytest.raises(PackageError, match=r"t\.json: its replacements make a text over 64 times as long"):
            check_tokenizer_file(data, "t.json")


def test_usual_replacements_are_none_that_grow() -> None:
    steps = [replace(" ", "\u2581"), replace("``", '"'), replace("''", '"'), replace(" {2,}", " ", "Regex")]
    check_tokenizer_file(compact(document(normalizer={"type": "Sequence", "normalizers": steps})), "t.json")


def test_a_pattern_without_end_fails_its_text_only(fresh_package: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rule = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    (fresh_package / "tokenizer.json").write_bytes(compact(document(pre_tokenizer=rule)))
    opened = TextTokenizer(PackageInfo.open(fresh_package))
    with pytest.raises(InputError, match=r"cannot be applied to this text: .*retry-limit") as caught:
        opened.encode("a" * 2000 + "b", parse_special=False, add_bos=False)
    assert "\n" not in str(caught.value)
    assert opened.encode("b", parse_special=False, add_bos=False)
    assert "panicked" in capfd.readouterr().err  # the library's own words, which cannot be silenced


def test_a_decoder_that_panics_is_an_error(fresh_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = TextTokenizer(PackageInfo.open(fresh_package))
    panic = type("PanicException", (BaseException,), {})

    class Broken:
        error: BaseException = panic("index out of bounds")

        def decode(self, *_: object, **__: object) -> str:
            raise self.error

    monkeypatch.setattr(opened, "_tokenizer", Broken())
    with pytest.raises(InputError, match="index out of bounds"):
        opened.decode([1])
    Broken.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        opened.decode([1])
