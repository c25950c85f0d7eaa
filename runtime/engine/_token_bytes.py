"""The bytes that each token of a vocabulary adds to a text, and the tokens that a text within an answer is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from bitnet_onnx.errors import UnsupportedError

#: Put before the names of tokens that are no text; this byte begins no UTF-8.
_NO_TEXT = b"\xff"
#: Steps that change only where a text begins, or join tokens.
_HARMLESS = ("Fuse", "Strip")
_MAX_DEPTH = 8
_MAX_TOKEN_BYTES = 64
_MAX_TEXT = 512


@dataclass(frozen=True, slots=True)
class TokenBytes:
    """A vocabulary for llguidance.

    Attributes:
        tokens: what each id adds to the text, `[vocab_size]`; a control token, or an id without a token, has 0xFF and
            a name instead.
        control: ids of the latter.
    """

    tokens: tuple[bytes, ...]
    control: tuple[int, ...]


@dataclass(slots=True)
class _Decoder:
    byte_level: bool = False
    byte_fallback: bool = False
    replace: tuple[tuple[str, str], ...] = ()

    def read(self, node: object, depth: int = 0) -> None:
        if not isinstance(node, dict) or depth > _MAX_DEPTH:
            raise UnsupportedError(
                "tokenizer.json: the decoder is missing: structured output cannot tell what tokens spell"
            )
        kind = node.get("type")
        if kind == "Sequence":
            for part in node.get("decoders", []):
                self.read(part, depth + 1)
        elif kind == "ByteLevel":
            self.byte_level = True
        elif kind == "ByteFallback":
            self.byte_fallback = True
        elif kind == "Metaspace":
            self.replace += ((str(node.get("replacement", "\u2581")), " "),)
        elif kind == "Replace" and isinstance(pattern := node.get("pattern"), dict) and "String" in pattern:
            self.replace += ((str(pattern["String"]), str(node.get("content", ""))),)
        elif kind not in _HARMLESS:
            raise UnsupportedError(f"tokenizer.json: decoder {kind!r:.40} is not supported by structured output")

    def spell(self, token: str) -> bytes:
        if self.byte_level:
            known = [_BYTE_OF.get(character) for character in token]
            spelt = [byte for byte in known if byte is not None]
            return bytes(spelt) if len(spelt) == len(known) else token.encode("utf-8", "replace")
        if self.byte_fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes([int(token[3:5], 16)])
            except ValueError:
                pass
        for old, new in self.replace:
            token = token.replace(old, new)
        return token.encode("utf-8", "replace")


def _byte_of() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for U+0100 and on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_BYTE_OF = _byte_of()


def token_bytes(tokenizer: Tokenizer, vocab_size: int, stop_ids: Sequence[int]) -> TokenBytes:
    """What every id below `vocab_size` spells.

    Byte-level vocabularies, and those of SentencePiece with or without tokens for single bytes. Ids that the
    tokenizer does not have (padded vocabularies) and `stop_ids` spell nothing.

    Raises:
        UnsupportedError: the decoder of tokenizer.json is of another kind.
    """
    state = tokenizer.decoder.__getstate__() if tokenizer.decoder is not None else b"null"
    decoder = _Decoder()
    decoder.read(json.loads(state))
    added = tokenizer.get_added_tokens_decoder()
    tokens = [b""] * vocab_size
    for text, token in tokenizer.get_vocab(with_added_tokens=True).items():
        if token >= vocab_size:
            continue
        if token in added:
            # Decoders leave added tokens as they are, but for the signs of SentencePiece.
            tokens[token] = added[token].content.encode("utf-8", "replace")
            if added[token].special:
                tokens[token] = _NO_TEXT + tokens[token]
        else:
            tokens[token] = decoder.spell(text)
    for token in stop_ids:
        tokens[token] = _NO_TEXT + tokens[token].removeprefix(_NO_TEXT)
    for token, spelt in enumerate(tokens):
        if spelt in (b"", _NO_TEXT):
            tokens[token] = _NO_TEXT + f"[{token}]".encode()
    # A byte-level vocabulary has a token for the byte 0xFF too: no text of ours holds it.
    control = tuple(token for token, spelt in enumerate(tokens) if spelt.startswith(_NO_TEXT))
    return TokenBytes(tuple(tokens), control)


class Spelling:
    """Token ids of a text that stands within an answer, so that forced text is cut as the model is used to.

    The result spells the text exactly: where the tokenizer would change it (upper case, a space in front, other
    normal forms), the longest tokens that fit are taken instead.

    Args:
        tokenizer: is copied.
        tokens: of `token_bytes`.
        control: of `token_bytes`.
    """

    def __init__(self, tokenizer: Tokenizer, tokens: Sequence[bytes], control: Sequence[int]) -> None:
        self._tokenizer = _without_prefix(tokenizer)
        self._tokens = tokens
        no_text = set(control)
        self._ids = {spelt: token for token, spelt in enumerate(tokens) if token not in no_text}
        self._longest = min(max(map(len, self._ids), default=0), _MAX_TOKEN_BYTES)

    def __call__(self, text: str) -> list[int]:
        """Ids, possibly none where the vocabulary cannot spell the text; of a long text those of its beginning.

        Only the first one is ever taken from a forced text, and it is asked for anew with each token.
        """
        whole = len(text) <= _MAX_TEXT
        ids = self._encode(text if whole else text[:_MAX_TEXT])
        # The last tokens before the cut might be others without it.
        return ids if whole else ids[: max(1, len(ids) - _MAX_TOKEN_BYTES)]

    def _encode(self, text: str) -> list[int]:
        data = text.encode("utf-8", "replace")
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        if all(token < len(self._tokens) for token in ids) and b"".join(self._tokens[token] for token in ids) == data:
            return ids
        ids = []
        while data:
            sizes = range(min(self._longest, len(data)), 0, -1)
            size = next((size for size in sizes if data[:size] in self._ids), 0)
            if not size:
                return []
            ids.append(self._ids[data[:size]])
            data = data[size:]
        return ids


def _without_prefix(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that puts no space before a text, adds nothing and takes control tokens for text."""
    state = json.loads(tokenizer.to_str())
    state["normalizer"] = _unprefixed(state.get("normalizer"))
    state["pre_tokenizer"] = _unprefixed(state.get("pre_tokenizer"))
    copy = Tokenizer.from_str(json.dumps(state))
    copy.no_truncation()
    copy.no_padding()
    copy.encode_special_tokens = True
    return copy


def _unprefixed(node: object, depth: int = 0) -> object:
    if not isinstance(node, dict) or depth > _MAX_DEPTH:
        return node
    if node.get("type") == "Prepend":
        return None
    for key in ("normalizers", "pretokenizers"):
        if isinstance(node.get(key), list):
            parts = [_unprefixed(part, depth + 1) for part in node[key]]
            node[key] = [part for part in parts if part is not None]
    if node.get("type") == "Metaspace":
        node["prepend_scheme"] = "never"
    if node.get("type") == "ByteLevel":
        node["add_prefix_space"] = False
    return node
