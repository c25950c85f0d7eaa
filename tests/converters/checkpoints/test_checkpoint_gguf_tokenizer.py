"""The tokenizer out of a GGUF against encoders written down independently."""

from __future__ import annotations

import json
import logging
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_checkpoints import BPE_MERGES, bpe_metadata, byte_alphabet, sentencepiece_metadata
from tokenizers import Tokenizer

from bitnet_onnx.converters.checkpoints import open_checkpoint
from bitnet_onnx.converters.checkpoints._gguf_metadata import Metadata
from bitnet_onnx.converters.checkpoints._gguf_pretokenizers import PRE_TOKENIZERS
from bitnet_onnx.converters.checkpoints._gguf_tokenizer import tokenizer_files
from bitnet_onnx.errors import CheckpointError, UnsupportedError

GOLDEN = Path(__file__).parent / "golden" / "smollm2_token_ids.json"


def files(metadata: dict[str, Any]) -> dict[str, bytes]:
    return dict(tokenizer_files(Metadata(metadata, "x.gguf")).files)


def tokenizer(metadata: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_str(files(metadata)["tokenizer.json"].decode())


def words(pre: str, text: str) -> list[str]:
    """The words that a rule cuts `text` into."""
    cut = tokenizer(bpe_metadata(pre)).pre_tokenizer.pre_tokenize_str(text)
    table = {character: byte for byte, character in enumerate(byte_alphabet())}
    return [bytes(table[character] for character in word).decode() for word, _ in cut]


def test_merges_words_and_special_tokens() -> None:
    encoder = tokenizer(bpe_metadata())
    assert encoder.encode("hello world<|im_end|>").tokens == ["hello", "\u0120world", "<|im_end|>"]
    assert encoder.encode("<think>hell").tokens == ["<think>", "hell"]
    assert encoder.encode("12").tokens == ["1", "2"], "smollm: digits stand alone, whatever the merges"
    assert tokenizer(bpe_metadata("gpt-2")).encode("12").tokens == ["12"]
    ids = encoder.encode("<think>x<|im_end|>").ids
    assert encoder.decode(ids) == "<think>x", "control tokens are special, user tokens are text"


@given(st.text())
def test_byte_level_round_trip(text: str) -> None:
    encoder = _SMOLLM
    assert encoder.decode(encoder.encode(text).ids, skip_special_tokens=False) == text


_SMOLLM = tokenizer(bpe_metadata())

TEXT = "I'll PAY's 12345  in\t\u00bd  x\n\n  y!?\r\n z\u00e9"


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", "I|'ll| PAY|'s| 12345| | in|\t|½| | x|\n\n | y|!?|\r\n| zé"),
        ("smollm", "I|'ll| PAY|'s| |1|2|3|4|5| | in|\t|½| | x|\n\n | y|!?|\r\n| zé"),
        ("llama-bpe", "I|'ll| PAY|'s| |123|45| | in|\t|½| | x|\n\n| | y|!?\r\n| zé"),
        ("qwen2", "I|'ll| PAY|'s| |1|2|3|4|5| | in|\t|½| | x|\n\n| | y|!?\r\n| zé"),
        ("tekken", "I|'ll| PAY|'s| |1|2|3|4|5| | in|\t|½| | x|\n\n| | y|!?\r\n| zé"),
        ("gpt-4o", "I'll| PAY's| |123|45| | in|\t|½| | x|\n\n| | y|!?\r\n| zé"),
    ],
)
def test_words(pre: str, expected: str) -> None:
    assert "|".join(words(pre, TEXT)) == expected


def test_rules_that_look_at_capitals() -> None:
    for pre in ("tekken", "gpt-4o"):
        assert words(pre, "HTMLPage and/\n\nor") == ["HTMLPage", " and", "/\n\n", "or"]
        assert words(pre, "fooBar") == ["foo", "Bar"]


def test_contractions_in_capitals_differ_between_rules() -> None:
    assert words("gpt-2", "I'LL") == ["I", "'", "LL"]
    assert words("llama-bpe", "I'LL") == ["I", "'LL"]


def test_normalization_and_ignored_merges() -> None:
    decomposed = unicodedata.normalize("NFD", "é")
    assert tokenizer(bpe_metadata("qwen2")).encode(decomposed).ids == tokenizer(bpe_metadata("qwen2")).encode("é").ids
    assert len(tokenizer(bpe_metadata("smollm")).encode(decomposed).ids) == 3
    # A word that is a token although no merges lead to it.
    metadata = bpe_metadata("llama-bpe")
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "xyz"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 1]
    assert tokenizer(metadata).encode("xyz").tokens == ["xyz"]
    assert tokenizer(metadata | {"tokenizer.ggml.pre": "dbrx"}).encode("xyz").tokens == ["x", "y", "z"]


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_every_rule_loads_and_loses_nothing(pre: str) -> None:
    encoder = tokenizer(bpe_metadata(pre) | {"tokenizer.ggml.add_bos_token": False})
    assert encoder.decode(encoder.encode(TEXT).ids) == TEXT


def test_beginning_and_end_of_text() -> None:
    metadata = bpe_metadata() | {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    encoder = tokenizer(metadata)
    assert encoder.encode("he").tokens == ["<|im_start|>", "he", "<|im_end|>"]
    assert encoder.encode("he", "ll").tokens == ["<|im_start|>", "he", "<|im_end|>", "<|im_start|>", "ll", "<|im_end|>"]
    assert encoder.encode("he", add_special_tokens=False).tokens == ["he"]
    # Files that do not say so: llama-bpe adds bos, gpt-2 does not.
    for pre, expected in (("llama-bpe", 2), ("gpt-2", 1)):
        metadata = bpe_metadata(pre)
        del metadata["tokenizer.ggml.add_bos_token"]
        assert len(tokenizer(metadata).encode("he").tokens) == expected


def test_files_beside_tokenizer_json() -> None:
    written = files(bpe_metadata())
    config = json.loads(written["tokenizer_config.json"])
    names = {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
    }
    assert config == names | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": "{{ messages }}",
    }
    assert json.loads(written["special_tokens_map.json"]) == names
    assert written["chat_template.jinja"] == b"{{ messages }}"
    metadata = bpe_metadata()
    del metadata["tokenizer.chat_template"]
    assert "chat_template.jinja" not in files(metadata)


def test_named_templates_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    extra = {"tokenizer.chat_templates": ["tool_use"], "tokenizer.chat_template.tool_use": "{{ tools }}"}
    with caplog.at_level(logging.INFO):
        written = files(bpe_metadata() | extra)
    assert "tokenizer.chat_template.tool_use" in caplog.text
    assert written["chat_template.jinja"] == b"{{ messages }}"
    assert not any(b"tools" in data for data in written.values())


def test_missing_rule_is_taken_as_gpt_2_with_a_warning() -> None:
    assert tokenizer(bpe_metadata(None)).encode("12").tokens == ["12"]
    found = tokenizer_files(Metadata(bpe_metadata(None), "x.gguf"))
    assert found.warning == "x.gguf: tokenizer.ggml.pre is missing; words are cut as in GPT-2"
    for metadata in (bpe_metadata(), sentencepiece_metadata()):
        assert not tokenizer_files(Metadata(metadata, "x.gguf")).warning


# --- SentencePiece -------------------------------------------------------------------------------------------


def by_score(text: str) -> list[str]:
    """SentencePiece BPE as it is defined: join the neighbours whose joint piece scores best, leftmost first."""
    metadata = sentencepiece_metadata()
    scores = dict(zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"], strict=True))
    pieces = list(("\u2581" + text.replace(" ", "\u2581")) if text else "")
    while True:
        joined = [(scores[a + b], -i) for i, (a, b) in enumerate(pairwise(pieces)) if a + b in scores]
        if not joined:
            break
        at = -max(joined)[1]
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    return [
        part
        for piece in pieces
        for part in ([piece] if piece in scores else [f"<0x{byte:02X}>" for byte in piece.encode()])
    ]


_SENTENCEPIECE = tokenizer(sentencepiece_metadata())


@given(st.text(st.sampled_from(" abeghinrt.é日"), max_size=30))
def test_sentencepiece_merges_by_score(text: str) -> None:
    assert _SENTENCEPIECE.encode(text).tokens == ["<s>", *by_score(text)]


@given(st.text(max_size=30))
def test_sentencepiece_round_trip(text: str) -> None:
    text = text.replace("\u2581", "")
    assert _SENTENCEPIECE.decode(_SENTENCEPIECE.encode(text).ids) == text


def test_sentencepiece_without_prefix_and_bytes() -> None:
    metadata = sentencepiece_metadata() | {
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.add_bos_token": False,
    }
    encoder = tokenizer(metadata)
    assert encoder.encode("the in").tokens == ["t", "he", "\u2581in"]
    assert encoder.decode(encoder.encode(" the").ids) == " the"
    assert encoder.encode("é").tokens == ["<0xC3>", "<0xA9>"]
    metadata["tokenizer.ggml.tokens"] = ["<unk>", "a"]
    metadata |= {"tokenizer.ggml.token_type": [2, 1], "tokenizer.ggml.scores": [0.0, 0.0]}
    del metadata["tokenizer.ggml.bos_token_id"], metadata["tokenizer.ggml.eos_token_id"]
    assert tokenizer(metadata).encode("aéèa").tokens == ["a", "<unk>", "a"], "no bytes: unknowns run together"


def test_gemma_has_tokens_of_its_own_for_runs_of_spaces() -> None:
    """Found before merging, with marks or with spaces; a converter of llama.cpp writes the second."""
    metadata = sentencepiece_metadata()
    own = {"\u2581" * 3: 4, "    ": 4, "<start_of_turn>": 3, "\n\n": 4}
    metadata |= {
        "tokenizer.ggml.tokens": [*metadata["tokenizer.ggml.tokens"], *own],
        "tokenizer.ggml.token_type": [*metadata["tokenizer.ggml.token_type"], *own.values()],
        "tokenizer.ggml.scores": [*metadata["tokenizer.ggml.scores"], *[-1000.0] * len(own)],
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.add_bos_token": False,
    }
    encoder = tokenizer(metadata)
    for text, expected in {
        "a   b": ["a", "\u2581\u2581\u2581", "b"],
        "a    b": ["a", "    ", "b"],
        "  the": ["\u2581", "\u2581the"],
        "<start_of_turn>a\n\nb": ["<start_of_turn>", "a", "\n\n", "b"],
    }.items():
        found = encoder.encode(text)
        assert found.tokens == expected
        assert encoder.decode(found.ids, skip_special_tokens=False) == text


def test_missing_types_mean_normal_tokens() -> None:
    metadata = bpe_metadata()
    del metadata["tokenizer.ggml.token_type"]
    assert tokenizer(metadata).get_added_tokens_decoder() == {}


# --- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"tokenizer.ggml.model": "bert"}, UnsupportedError, "'bert' is not one of gpt2, llama"),
        ({"tokenizer.ggml.pre": "viking"}, UnsupportedError, "'viking' is not one of .*smollm"),
        ({"tokenizer.ggml.tokens": ["a", "b", "a"]}, CheckpointError, "holds 'a' twice"),
        ({"tokenizer.ggml.tokens": [""] * 524_289}, CheckpointError, "524289 tokens, the limit is 524288"),
        ({"tokenizer.ggml.tokens": [1, 2]}, CheckpointError, "expected a list of strings"),
        ({"tokenizer.ggml.tokens": []}, CheckpointError, "0 entries|0 tokens|for 0 tokens"),
        ({"tokenizer.ggml.token_type": [1, 2]}, CheckpointError, "2 entries"),
        ({"tokenizer.ggml.token_type": "x"}, CheckpointError, "expected a list of integers"),
        ({"tokenizer.ggml.merges": [*BPE_MERGES, "q u"]}, CheckpointError, "merge 'q u' is not of two tokens"),
        ({"tokenizer.ggml.merges": ["hello"]}, CheckpointError, "merge 'hello'"),
        ({"tokenizer.ggml.eos_token_id": 5000}, CheckpointError, "eos_token_id is 5000, but there are"),
        ({"tokenizer.ggml.eos_token_id": -1}, CheckpointError, "expected an integer"),
        ({"tokenizer.ggml.add_bos_token": 1}, CheckpointError, "expected a boolean"),
        ({"tokenizer.chat_template": 5}, CheckpointError, "expected a string"),
        ({"tokenizer.chat_template": "x" * 1_000_001}, CheckpointError, "exceeds 1000000"),
    ],
)
def test_broken_metadata(changes, error, message) -> None:
    with pytest.raises(error, match=message):
        files(bpe_metadata() | changes)


def test_bos_wanted_but_not_named() -> None:
    metadata = bpe_metadata() | {"tokenizer.ggml.add_bos_token": True}
    del metadata["tokenizer.ggml.bos_token_id"]
    with pytest.raises(CheckpointError, match="without a bos token"):
        files(metadata)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.scores": [0.0]}, "1 entries"),
        ({"tokenizer.ggml.scores": [float("nan")] * 297}, "finite floats"),
        ({"tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "a" * 257]}, "256 characters"),
    ],
)
def test_broken_sentencepiece_metadata(changes, message) -> None:
    metadata = sentencepiece_metadata() | changes
    if "tokenizer.ggml.tokens" in changes:
        metadata |= {"tokenizer.ggml.token_type": [2, 3, 3, 1], "tokenizer.ggml.scores": [0.0] * 4}
    with pytest.raises(CheckpointError, match=message):
        files(metadata)


# --- the real model ------------------------------------------------------------------------------------------


@pytest.mark.zoo
def test_smollm2_ids(zoo_model: Path) -> None:
    """Golden ids: a slow encoder (Unicode digits split off, the GPT-2 pattern, merges by rank) written apart."""
    with open_checkpoint(zoo_model) as checkpoint:
        encoder = Tokenizer.from_str(checkpoint.tokenizer().files["tokenizer.json"].decode())
        assert checkpoint.generation_config["eos_token_id"] == [2, 0]
    for row in json.loads(GOLDEN.read_text()):
        assert encoder.encode(row["text"]).ids == row["ids"], row["text"]
        assert encoder.decode(row["ids"], skip_special_tokens=False) == row["text"]
