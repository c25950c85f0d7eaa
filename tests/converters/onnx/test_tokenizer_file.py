"""tokenizer.json as packages hold it: another file, the same tokenizer."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from bitnet_onnx.converters.onnx._tokenizer_file import compact_tokenizer

TEXTS = [
    "",
    " ",
    "the  other\tthing\r\n",
    "aaaa bbbb ab ba",
    "Ünïcödé ß\u2028\u00a0 \u65e5\u672c\u8a9e \U0001f600\u200d",
    '"quoted" \\ \x00\x1f\x7f',
    "<end>the<end> #version: 0.2",
]


def byte_level() -> Tokenizer:
    """Ids that are not in the order of the tokens' bytes, and no piece with a space."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True)
    merges = [("t", "h"), ("th", "e"), ("a", "b"), ("b", "a"), ("a", "a"), ("Ġ", "the"), ("Ã", "ľ")]
    tokens = [*alphabet, *(left + right for left, right in merges)]
    return finished(
        Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges)), byte_level=True
    )


def spaced() -> Tokenizer:
    """Pieces that hold spaces, which only pairs can say."""
    letters = [*"zyxtheabr#\n ", "日", "本"]
    merges = [("t", "h"), (" ", " "), ("a", " "), ("a ", "b"), ("th", "e"), ("日", "本"), ("\n", "a")]
    tokens = [*letters, *(left + right for left, right in merges)]
    return finished(
        Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges)), byte_level=False
    )


def versioned() -> Tokenizer:
    """A first merge that the library would take for the heading of a merges.txt if it were a string."""
    merges = [("#v", "e"), ("#version", "a"), ("a", "b")]
    tokens = ["b", "a", "e", "#v", "#version", *(left + right for left, right in merges)]
    return finished(
        Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges)), byte_level=False
    )


def finished(tokenizer: Tokenizer, *, byte_level: bool) -> Tokenizer:
    if byte_level:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<end>", normalized=False)])
    return tokenizer


TOKENIZERS = {"byte_level": byte_level(), "spaced": spaced(), "versioned": versioned()}


def written(tokenizer: Tokenizer) -> dict:
    """What the library writes, as Python values."""
    return json.loads(tokenizer.to_str())


def bpe(**changes: object) -> bytes:
    model = {"type": "BPE", "vocab": {"b": 0, "a": 1, "ab": 2}, "merges": [["a", "b"]]} | changes
    return json.dumps({"version": "1.0", "added_tokens": [], "model": model}, indent=1).encode()


def model_of(data: bytes) -> dict:
    return json.loads(data)["model"]


@pytest.mark.parametrize("pretty", [True, False])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_library_reads_the_same_tokenizer(name: str, pretty: bool) -> None:
    before = TOKENIZERS[name]
    after = Tokenizer.from_buffer(compact_tokenizer(before.to_str(pretty=pretty).encode()))
    assert written(after) == written(before)
    for text in TEXTS:
        assert after.encode(text).ids == before.encode(text).ids
        assert after.decode(after.encode(text).ids) == before.decode(before.encode(text).ids)


@given(text=st.text(), name=st.sampled_from(sorted(TOKENIZERS)))
def test_every_text_has_the_same_ids(text: str, name: str) -> None:
    before = TOKENIZERS[name]
    after = Tokenizer.from_buffer(compact_tokenizer(before.to_str().encode()))
    assert after.encode(text).ids == before.encode(text).ids


def test_the_form() -> None:
    before = byte_level().to_str(pretty=True).encode()
    after = compact_tokenizer(before)
    model = model_of(after)
    assert [token.encode() for token in model["vocab"]] == sorted(token.encode() for token in model_of(before)["vocab"])
    assert model["vocab"] == model_of(before)["vocab"]
    assert model["merges"] == [" ".join(pair) for pair in model_of(before)["merges"]]
    assert b"\n" not in after
    assert "Ã ľ".encode() in after
    assert list(json.loads(after)) == list(json.loads(before))
    assert list(model) == list(model_of(before))


@pytest.mark.parametrize("name", ["spaced", "versioned"])
def test_merges_that_strings_cannot_hold_stay_pairs(name: str) -> None:
    before = TOKENIZERS[name].to_str().encode()
    after = compact_tokenizer(before)
    assert model_of(after)["merges"] == model_of(before)["merges"]
    assert list(model_of(after)["vocab"]) == sorted(model_of(before)["vocab"])


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_compact_file_stays_as_it_is(name: str) -> None:
    once = compact_tokenizer(TOKENIZERS[name].to_str(pretty=True).encode())
    assert compact_tokenizer(once) == once


def test_old_files_name_no_type_and_write_strings() -> None:
    document = written(byte_level())
    del document["model"]["type"]
    document["model"]["merges"] = ["#version: 0.2", *(" ".join(pair) for pair in document["model"]["merges"])]
    after = compact_tokenizer(json.dumps(document).encode())
    assert json.loads(after) == document
    assert list(model_of(after)["vocab"]) == sorted(document["model"]["vocab"])
    assert Tokenizer.from_buffer(after).to_str() == byte_level().to_str()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b"{}",
        b'{"model": null}',
        b'\xef\xbb\xbf{"model": {}}',
        b'{"a": "\xff"}',
        b"[" * 100_000,
        bpe(type="WordLevel"),
        bpe(type=None),
        bpe(type=["BPE"]),
        bpe(vocab=[["a", 0]]),
        bpe(vocab=None),
        bpe(vocab={"a": -1}),
        bpe(vocab={"a": 1 << 32}),
        bpe(vocab={"a": True}),
        bpe(vocab={"a": 0.0}),
        bpe(vocab={"a": "0"}),
        bpe(vocab={"b": 0, "a": 0}),
        bpe(vocab={"\ud800": 0}),
        bpe(merges=None),
        bpe(merges={"a": "b"}),
        bpe(merges=["a b", ["a", "b"]]),
        bpe(merges=[["a", "b"], "a b"]),
        bpe(merges=[["a", "b", "c"]]),
        bpe(merges=[["a", 1]]),
        bpe(merges=[0]),
        bpe(dropout=float("nan")),
        bpe().replace(b'"a": 1', b'"a": 1, "a": 1'),
        bpe().replace(b'"type": "BPE"', b'"type": "BPE", "type": "BPE"'),
        bpe().replace(b'"b": 0', b'"b": 00'),
        Tokenizer(models.WordLevel({"b": 0, "a": 1}, "a")).to_str(pretty=True).encode(),
        Tokenizer(models.Unigram([("b", 0.0), ("a", -1.0)], 0, False)).to_str(pretty=True).encode(),
        Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1})).to_str(pretty=True).encode(),
    ],
    ids=range(34),
)
def test_what_is_unusual_passes_as_it_is(data: bytes) -> None:
    assert compact_tokenizer(data) == data


def test_the_base_of_those_cases_would_change() -> None:
    assert compact_tokenizer(bpe()) != bpe()
    assert model_of(compact_tokenizer(bpe()))["merges"] == ["a b"]
