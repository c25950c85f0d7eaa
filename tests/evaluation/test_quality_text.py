"""Texts as tokens: the bytes of what is scored, and files that cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_package import SPECIALS, write_package
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from bitnet_onnx.errors import InputError
from bitnet_onnx.evaluation.quality import text as module
from bitnet_onnx.evaluation.quality.text import read_text, tokenize
from bitnet_onnx.runtime import PackageInfo
from bitnet_onnx.runtime.tokenizer import TextTokenizer

# Characters of one to four bytes, white space of all kinds, and lines.
TEXT = "Za\u017c\u00f3\u0142\u0107 g\u0119\u015bl\u0105\n\n  \u65e5\u672c\u8a9e\t\U0001f937\u200d\u2642 end.\r\n\nlast "


def splitting_tokenizer() -> Tokenizer:
    """Bytes, and one token that ends within a character: a space and the first byte of what follows."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*alphabet, "\u0120g", "\u0120\u00c3"]
    merges = [("\u0120", "g"), ("\u0120", "\u00c3")]
    tokenizer = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS])
    # As GPT-2's file has it: white space is cut off the offsets.
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    directory = write_package(tmp_path_factory.mktemp("text"), tokenizer=splitting_tokenizer())
    return TextTokenizer(PackageInfo.open(directory))


def test_a_character_belongs_to_the_token_that_completes_it(tokenizer: TextTokenizer) -> None:
    found = tokenize("a \u00e9g", tokenizer, "x")
    # a, space and first byte, second byte, g.
    assert len(found.ids) == 4
    assert found.ends.tolist() == [1, 2, 4, 5]
    assert [found.bytes(start, start + 1) for start in range(4)] == [1, 1, 2, 1]


def test_bytes_add_up_to_those_of_the_text(tokenizer: TextTokenizer) -> None:
    found = tokenize(TEXT, tokenizer, "x")
    assert found.bytes(0, len(found.ids)) == len(TEXT.encode())
    parts = [found.bytes(start, start + 1) for start in range(len(found.ids))]
    assert sum(parts) == len(TEXT.encode())
    assert min(parts) >= 0
    # Tokens of one byte have one, wherever characters end with them.
    assert found.bytes(0, 2) == 2


@pytest.mark.parametrize("piece", [7, 16, 40])
def test_long_texts_are_cut_behind_lines(tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    text = TEXT * 3 + "x" * 50 + "\n" + TEXT
    whole = tokenize(text, tokenizer, "x")
    monkeypatch.setattr(module, "_PIECE", piece)
    cut = tokenize(text, tokenizer, "x")
    assert cut.bytes(0, len(cut.ids)) == len(text.encode())
    if piece == 40:
        np.testing.assert_array_equal(cut.ids, whole.ids)
        np.testing.assert_array_equal(cut.ends, whole.ends)


def test_control_tokens_in_a_text_are_text(tmp_path: Path) -> None:
    tokenizer = TextTokenizer(PackageInfo.open(write_package(tmp_path)))
    assert len(tokenize("<|im_end|>", tokenizer, "x").ids) == len("<|im_end|>")
    assert len(tokenizer.encode("<|im_end|>", parse_special=True, add_bos=False)) == 1


def test_the_post_processor_is_put_back(tokenizer: TextTokenizer) -> None:
    tokenizer.encode_with_offsets("a b")
    assert isinstance(tokenizer.inner.post_processor, processors.ByteLevel)


def test_ids_beyond_the_model(tmp_path: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "_vocab_size", 3)
    with pytest.raises(InputError, match="outside the model's vocabulary of 3"):
        tokenize("z", tokenizer, "x")


def test_files_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(TEXT.encode())
    assert read_text(path) == TEXT


def test_files_that_cannot_be_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text"
    with pytest.raises(InputError, match="text: cannot be read: No such file"):
        read_text(path)
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_text(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="is empty"):
        read_text(path)
    path.write_bytes(b"good \xff bad")
    with pytest.raises(InputError, match="byte 5 is not UTF-8"):
        read_text(path)
    with path.open("wb") as file:
        file.truncate(1 << 40)  # no block of it is on the disk
    with pytest.raises(InputError, match="larger than the limit of 67108864 bytes"):
        read_text(path)
    monkeypatch.setattr(module, "MAX_TEXT_BYTES", 4)
    path.write_bytes(b"12345")
    with pytest.raises(InputError, match="larger than the limit of 4 bytes"):
        read_text(path)
