from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_package import TinyShape, byte_tokenizer, edit_json, manifest
from tokenizers import Tokenizer, processors

from bitnet_onnx.errors import InputError, PackageError
from bitnet_onnx.runtime import PackageInfo
from bitnet_onnx.runtime.tokenizer import TextTokenizer


@pytest.fixture(scope="module")
def tokenizer(package: PackageInfo) -> TextTokenizer:
    return TextTokenizer(package)


def opened(directory: Path) -> TextTokenizer:
    return TextTokenizer(PackageInfo.open(directory))


def test_control_tokens_are_parsed_only_where_asked(tokenizer: TextTokenizer) -> None:
    text = "a<|im_end|>b"
    parsed = tokenizer.encode(text, parse_special=True, add_bos=False)
    plain = tokenizer.encode(text, parse_special=False, add_bos=False)
    assert parsed[1] == tokenizer.token_id("<|im_end|>") == 258
    assert not tokenizer.control_ids & set(plain)
    assert tokenizer.decode(plain) == text
    assert tokenizer.decode(parsed) == "ab"
    assert tokenizer.control_ids == {256, 257, 258}


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_text_survives(text: str) -> None:
    tokenizer = byte_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize("parse_special", [True, False])
def test_lone_surrogates_are_refused(tokenizer: TextTokenizer, parse_special: bool) -> None:
    with pytest.raises(InputError, match="lone surrogate at character 2"):
        tokenizer.encode("ab\ud800", parse_special=parse_special, add_bos=True)


def test_unknown_ids_decode_to_nothing(tokenizer: TextTokenizer) -> None:
    assert tokenizer.decode([64, 9999]) == tokenizer.decode([64])


@pytest.mark.parametrize("processor", [True, False])
@pytest.mark.parametrize("add_bos_token", [True, False])
def test_the_beginning_token_comes_once_or_not(fresh_package: Path, processor: bool, add_bos_token: bool) -> None:
    path = fresh_package / "tokenizer.json"
    if processor:
        inner = Tokenizer.from_file(str(path))
        inner.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", 257)]
        )
        inner.save(str(path))
    edit_json(fresh_package / "tokenizer_config.json", bos_token="<|im_start|>", add_bos_token=add_bos_token)
    tokenizer = opened(fresh_package)
    expected = [257, 64] if processor or add_bos_token else [64]
    assert tokenizer.encode("a", parse_special=True, add_bos=True) == expected
    assert tokenizer.encode("a", parse_special=True, add_bos=False) == [64]


def test_truncation_and_padding_left_in_the_file_are_ignored(fresh_package: Path) -> None:
    path = fresh_package / "tokenizer.json"
    inner = Tokenizer.from_file(str(path))
    inner.enable_truncation(4)
    inner.enable_padding(length=64)
    inner.save(str(path))
    assert len(opened(fresh_package).encode("twelve chars", parse_special=True, add_bos=True)) == 12


def test_an_id_beyond_the_vocabulary_is_refused(fresh_package: Path) -> None:
    sizes = manifest(TinyShape(), 258)["architecture"]
    edit_json(fresh_package / "bitnet_onnx.json", architecture=sizes)
    edit_json(fresh_package / "generation_config.json", eos_token_id=None)
    tokenizer = opened(fresh_package)
    assert tokenizer.token_id("<|im_end|>") is None
    with pytest.raises(InputError, match="id 258, outside the model's vocabulary of 258"):
        tokenizer.encode("<|im_end|>", parse_special=True, add_bos=True)


@pytest.mark.parametrize("text", ["{}", "[]", '{"model": {"type": "BPE"}}', '{"model": 7, "added_tokens": "x"}', "x"])
def test_a_broken_tokenizer_is_one_line(fresh_package: Path, text: str) -> None:
    (fresh_package / "tokenizer.json").write_text(text, encoding="utf-8")
    with pytest.raises(PackageError, match="not a usable tokenizer") as caught:
        opened(fresh_package)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_is_not_utf_8_says_where(fresh_package: Path) -> None:
    (fresh_package / "tokenizer.json").write_bytes(b'{"model": "\xff"}')
    with pytest.raises(PackageError, match=r"tokenizer\.json: not UTF-8 at byte 11"):
        opened(fresh_package)


@pytest.mark.parametrize("platform", ["linux", "win32"])
@pytest.mark.parametrize("trim", [True, False])
def test_any_c_library_will_do(
    package: PackageInfo, monkeypatch: pytest.MonkeyPatch, platform: str, trim: bool
) -> None:
    calls: list[int] = []
    library = SimpleNamespace(malloc_trim=calls.append) if trim else SimpleNamespace()
    monkeypatch.setattr("bitnet_onnx.runtime._malloc.ctypes", SimpleNamespace(CDLL=lambda name: library))
    monkeypatch.setattr("bitnet_onnx.runtime._malloc.sys", SimpleNamespace(platform=platform))
    TextTokenizer(package)
    assert calls == [0] * (trim and platform == "linux")


def test_a_panic_of_the_library_is_one_line_and_an_interrupt_is_not(
    package: PackageInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Panic(BaseException):
        pass

    class Broken:
        error: type[BaseException] = Panic

        @classmethod
        def from_buffer(cls, data: bytes) -> None:
            raise cls.error("thread panicked")

    monkeypatch.setattr("bitnet_onnx.runtime.tokenizer.Tokenizer", Broken)
    with pytest.raises(PackageError, match="thread panicked"):
        TextTokenizer(package)
    Broken.error = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        TextTokenizer(package)
