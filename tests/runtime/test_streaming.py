from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_package import byte_tokenizer
from tokenizers import Tokenizer, decoders, models

from bitnet_onnx.runtime.streaming import Detokenizer, StopStrings

# An unfinished character at the end cannot be told from a real U+FFFD there.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60).filter(lambda text: not text.endswith("\ufffd"))


def pieces_of(decode: Callable[[Sequence[int]], str], ids: Sequence[int], context: Sequence[int] = ()) -> list[str]:
    detokenizer = Detokenizer(decode, context)
    return [detokenizer.push(token) for token in ids]


def byte_fallback_tokenizer() -> Tokenizer:
    """A SentencePiece-like vocabulary: a few words, every other character in bytes."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁hello", "▁world", "a", "b"]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


@settings(deadline=None)
@given(TEXT)
def test_single_byte_tokens_give_exactly_the_text(text: str) -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode(text).ids
    pieces = pieces_of(tokenizer.decode, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert text.startswith("".join(pieces[:-1]))


@settings(deadline=None)
@given(TEXT, st.data())
def test_tokens_cut_anywhere_in_the_bytes_give_exactly_the_text(text: str, data: st.DataObject) -> None:
    raw = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(raw) - 1)), max_size=40)))
    tokens = [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True) if raw[start:end]]

    def decode(ids: Sequence[int]) -> str:
        return b"".join(tokens[index] for index in ids).decode(errors="replace")

    pieces = pieces_of(decode, range(len(tokens)))
    assert "".join(pieces) == text
    done = ""
    for piece in pieces:
        done += piece
        assert text.startswith(done)


def test_tokens_that_all_end_within_a_character_are_decoded_in_a_bounded_window() -> None:
    text = "日本語" * 100
    raw = text.encode()
    tokens = [raw[:1], *(raw[start : start + 3] for start in range(1, len(raw), 3))]
    longest = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return b"".join(tokens[index] for index in ids).decode(errors="replace")

    assert "".join(pieces_of(decode, range(len(tokens)))) == text
    assert longest < 50


def test_invalid_bytes_do_not_hold_text_back_for_ever() -> None:
    tokens = [b"\xff"] * 100 + [b"end"]
    longest = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return b"".join(tokens[index] for index in ids).decode(errors="replace")

    text = "".join(pieces_of(decode, range(len(tokens))))
    assert text == "\ufffd" * 100 + "end"
    assert longest < 50


def test_an_unfinished_character_at_the_end_is_not_emitted() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode("ok 👍").ids
    assert "".join(pieces_of(tokenizer.decode, ids[:-1])) == "ok "


@settings(deadline=None)
@given(st.text("ab日👍é", max_size=30))
def test_byte_fallback_gives_exactly_the_text(text: str) -> None:
    tokenizer = byte_fallback_tokenizer()
    ids = tokenizer.encode(text).ids
    assert "".join(pieces_of(tokenizer.decode, ids)) == tokenizer.decode(ids) == text


def test_a_continued_text_keeps_the_space_that_a_decoder_drops_at_the_beginning() -> None:
    tokenizer = byte_fallback_tokenizer()
    hello, world = tokenizer.token_to_id("▁hello"), tokenizer.token_to_id("▁world")
    assert pieces_of(tokenizer.decode, [world], context=[hello]) == [" world"]
    assert pieces_of(tokenizer.decode, [world]) == ["world"]
    assert pieces_of(tokenizer.decode, [hello, world]) == ["hello", " world"]


def test_control_tokens_leave_the_context_alone() -> None:
    tokenizer = byte_fallback_tokenizer()
    tokenizer.add_special_tokens(["<ctl>"])
    control, hello, world = (tokenizer.token_to_id(text) for text in ("<ctl>", "▁hello", "▁world"))
    ids = [hello, *[control] * 100, world]
    assert "".join(pieces_of(tokenizer.decode, ids)) == "hello world"


def test_a_context_that_ends_within_a_character_is_completed() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode("日").ids
    assert pieces_of(tokenizer.decode, ids[2:], context=ids[:2]) == ["日"]


def cut(text: str, stop: Sequence[str]) -> str:
    """The definition: read character by character until some stop string ends the text."""
    for end in range(len(text) + 1):
        if ending := [word for word in stop if text[:end].endswith(word)]:
            return text[: end - max(map(len, ending))]
    return text


@settings(deadline=None)
@given(
    st.text("abc", max_size=30),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 30), max_size=10),
)
def test_stop_strings_do_not_depend_on_how_the_text_is_cut(text: str, stop: list[str], cuts: list[int]) -> None:
    borders = [0, *sorted(cuts), len(text)]
    borders = [min(border, len(text)) for border in borders]
    stops = StopStrings(stop)
    out = ""
    for start, end in pairwise(borders):
        out += stops.push(text[start:end])
        assert cut(text, stop).startswith(out)
    out += stops.flush()
    assert out == cut(text, stop)
    assert (stops.found is not None) == any(word in text for word in stop)


def test_a_stop_string_is_held_back_until_it_cannot_be_one() -> None:
    stops = StopStrings(["\n\nUser:"])
    assert stops.push("Hi\n") == "Hi"
    assert stops.push("\nUse") == ""
    assert stops.push("ful") == "\n\nUseful"
    assert stops.push("\n\nUser: more") == ""
    assert stops.found == "\n\nUser:"
    assert stops.push("more") == ""


@pytest.mark.parametrize("stop", [[], ["x"]])
def test_without_a_match_everything_comes_out(stop: list[str]) -> None:
    stops = StopStrings(stop)
    assert stops.push("abc") + stops.flush() == "abc"
