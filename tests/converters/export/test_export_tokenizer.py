"""tokenizer.json as GGUF metadata: the same texts give the same ids when a reader makes a tokenizer of them again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from exports import write_source
from tiny_checkpoints import bpe_metadata, sentencepiece_metadata
from tokenizers import Tokenizer

from bitnet_onnx.converters.checkpoints._gguf_metadata import Metadata
from bitnet_onnx.converters.checkpoints._gguf_pretokenizers import PRE_TOKENIZERS
from bitnet_onnx.converters.checkpoints._gguf_tokenizer import tokenizer_files
from bitnet_onnx.converters.export._gguf_tokenizer import tokenizer_metadata
from bitnet_onnx.converters.model import SourceModel, open_model
from bitnet_onnx.errors import CheckpointError, InputError, UnsupportedError

TEXTS = [
    "hello world",
    "  two  spaces",
    "12345 it's\nthe thing",
    "h\u00e9llo \u4f60\u597d",
    "<|im_start|>hello<|im_end|>",
    "<think>the</think>",
    "",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SourceModel:
    with open_model(write_source(tmp_path_factory.mktemp("tokenizer") / "source", "tied_mha")) as opened:
        return opened


def given(model: SourceModel, files: Mapping[str, bytes], size: int) -> SourceModel:
    return replace(model, tokenizer=files, spec=replace(model.spec, vocab_size=size), generation_config={}, config={})


def edited(model: SourceModel, change: Callable[[dict[str, Any]], None]) -> SourceModel:
    document = json.loads(model.tokenizer["tokenizer.json"])
    change(document)
    return replace(model, tokenizer={**model.tokenizer, "tokenizer.json": json.dumps(document).encode()})


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_byte_level(pre: str, model: SourceModel) -> None:
    metadata = bpe_metadata(pre)
    first = tokenizer_files(Metadata(metadata, "one"))
    words, notes = tokenizer_metadata(given(model, first.files, len(metadata["tokenizer.ggml.tokens"])))
    assert notes == []
    assert PRE_TOKENIZERS[str(words["tokenizer.ggml.pre"])].steps == PRE_TOKENIZERS[pre].steps
    for key, value in metadata.items():
        if key != "tokenizer.ggml.pre":
            assert words[key] == value, key
    second = tokenizer_files(Metadata(words, "two"))
    assert second.files == first.files


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("begins", [True, False])
def test_sentencepiece(prefix: bool, begins: bool, model: SourceModel) -> None:
    metadata = sentencepiece_metadata() | {
        "tokenizer.ggml.add_space_prefix": prefix,
        "tokenizer.ggml.add_bos_token": begins,
    }
    first = tokenizer_files(Metadata(metadata, "one"))
    words, notes = tokenizer_metadata(given(model, first.files, len(metadata["tokenizer.ggml.tokens"])))
    assert notes == []
    assert words["tokenizer.ggml.model"] == "llama"
    for key in ("tokens", "token_type", "add_space_prefix", "add_bos_token", "bos_token_id", "unknown_token_id"):
        assert words[f"tokenizer.ggml.{key}"] == metadata[f"tokenizer.ggml.{key}"], key
    second = tokenizer_files(Metadata(words, "two"))
    ours, theirs = (Tokenizer.from_str(files.files["tokenizer.json"].decode()) for files in (second, first))
    for text in TEXTS:
        assert ours.encode(text).ids == theirs.encode(text).ids, text


def test_special_tokens_of_a_hugging_face_directory(model: SourceModel) -> None:
    words, _ = tokenizer_metadata(replace(model, generation_config={"bos_token_id": 1, "eos_token_id": [2, 0]}))
    assert words["tokenizer.ggml.bos_token_id"] == 1
    assert words["tokenizer.ggml.eos_token_id"] == 2
    assert words["tokenizer.ggml.eot_token_id"] == 0
    assert words["tokenizer.ggml.add_bos_token"] is False
    types = words["tokenizer.ggml.token_type"]
    assert isinstance(types, list)
    assert types[:4] == [3, 3, 3, 1]


def test_ids_without_a_token_are_filled_up(model: SourceModel) -> None:
    bigger = replace(model, spec=replace(model.spec, vocab_size=520))
    words, _ = tokenizer_metadata(bigger)
    tokens, types = words["tokenizer.ggml.tokens"], words["tokenizer.ggml.token_type"]
    assert isinstance(tokens, list)
    assert isinstance(types, list)
    assert tokens[515:] == [f"[PAD{number}]" for number in range(515, 520)]
    assert types[515:] == [5] * 5
    with pytest.raises(CheckpointError, match="token id 514, but the model has 500 rows"):
        tokenizer_metadata(replace(model, spec=replace(model.spec, vocab_size=500)))


def test_templates_of_either_place(model: SourceModel) -> None:
    for config, files, expected in (
        ({"chat_template": "one"}, {}, "one"),
        ({"chat_template": [{"name": "tool", "template": "x"}, {"name": "default", "template": "two"}]}, {}, "two"),
        ({"chat_template": "one"}, {"chat_template.jinja": b"three"}, "three"),
        ({}, {}, None),
    ):
        tokenizer = {**model.tokenizer, "tokenizer_config.json": json.dumps(config).encode(), **files}
        words, _ = tokenizer_metadata(replace(model, tokenizer=tokenizer))
        assert words.get("tokenizer.chat_template") == expected


def test_a_normalizer_that_the_name_does_not_say_is_told(model: SourceModel) -> None:
    words, notes = tokenizer_metadata(edited(model, lambda document: document.update(normalizer={"type": "NFKC"})))
    assert words["tokenizer.ggml.pre"] == "gpt-2"
    assert notes == ["tokenizer: the rule 'gpt-2' has the normalizer none, not NFKC"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(model={"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a"}), "this is 'WordPiece'"),
        (lambda d: d["pre_tokenizer"].update(add_prefix_space=True), "its rule for cutting text into words is none"),
        (lambda d: d["model"].update(ignore_merges=True), "its rule for cutting text into words is none"),
        (lambda d: d.update(pre_tokenizer=None), "neither byte-level BPE nor one with byte_fallback"),
        (lambda d: d.update(pre_tokenizer={"type": "Whitespace"}), "the step 'Whitespace' is none that GGUF readers"),
        (lambda d: d["model"].update(merges=[]), "a tokenizer without merges"),
    ],
)
def test_what_a_gguf_does_not_hold(model: SourceModel, change: Callable[[dict[str, Any]], None], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message) as caught:
        tokenizer_metadata(edited(model, change))
    assert "--no-tokenizer" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_merge_that_is_none(model: SourceModel) -> None:
    with pytest.raises(InputError, match=r"merge .* is not two pieces"):
        tokenizer_metadata(edited(model, lambda document: document["model"].update(merges=["a b c"])))
