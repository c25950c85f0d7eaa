"""The tokenizer of a run: texts and chats to token ids, and what stands between documents."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from bitnet_onnx.errors import PackageError
from bitnet_onnx.json_input import load_object
from bitnet_onnx.package_format import CHAT_TEMPLATE, TOKENIZER, TOKENIZER_CONFIG
from bitnet_onnx.runtime.chat import ChatTemplate
from bitnet_onnx.runtime.package import special_tokens_of, template_of
from bitnet_onnx.runtime.tokenizer import TextTokenizer

_MAX_CONFIG_BYTES: Final = 16 << 20
#: What ends a text in one family or another; where eos_token ends a turn of a chat, one of these comes first.
_TEXT_ENDS: Final = ("<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>")  # noqa: RUF001
_PROBE: Final = "a"
_LINE_END: Final = "\n"


@dataclass(frozen=True, slots=True, eq=False)
class DataTokenizer:
    """What turns documents into tokens.

    Attributes:
        text: of the model.
        template: of chats, where the model has one.
        vocab_size: of the model.
        beginning: ids in front of a text.
        end: id behind a text; None where the tokenizer has none.
        lead: ids of a line end that a piece from the middle of a text is encoded behind, where the tokenizer would
            otherwise take it for a beginning; else empty.
        digest: SHA-256 of the files and sizes that all this is from.
    """

    text: TextTokenizer
    template: ChatTemplate | None
    vocab_size: int
    beginning: tuple[int, ...]
    end: int | None
    lead: tuple[int, ...]
    digest: str

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], *, vocab_size: int, source: Path) -> Self:
        """The tokenizer in the files of a checkpoint.

        Args:
            files: by name: tokenizer.json; tokenizer_config.json and chat_template.jinja where they are.
            vocab_size: of the model.
            source: what messages call their directory.

        Raises:
            PackageError: one of them is missing or wrong.
        """
        if TOKENIZER not in files:
            raise PackageError(f"{source}: no {TOKENIZER}")
        path = source / TOKENIZER_CONFIG
        data = files.get(TOKENIZER_CONFIG, b"{}")
        config = load_object(data, str(path), max_bytes=_MAX_CONFIG_BYTES, error=PackageError)
        special = special_tokens_of(config, path)
        if CHAT_TEMPLATE in files:
            try:
                config["chat_template"] = files[CHAT_TEMPLATE].decode()
            except UnicodeDecodeError as error:
                raise PackageError(f"{source / CHAT_TEMPLATE}: not UTF-8 at byte {error.start}") from None
        template = template_of(config, path)
        text = TextTokenizer.from_bytes(
            files[TOKENIZER],
            source / TOKENIZER,
            vocab_size=vocab_size,
            bos_token=special.get("bos_token"),
            add_bos_token=config.get("add_bos_token") is True,
        )
        digest = hashlib.sha256(str(vocab_size).encode())
        for name in (TOKENIZER, TOKENIZER_CONFIG, CHAT_TEMPLATE):
            digest.update(hashlib.sha256(files.get(name, b"")).digest())
        return cls(
            text=text,
            template=None if template is None else ChatTemplate(template, special),
            vocab_size=vocab_size,
            beginning=_beginning(text),
            end=_end(text, special.get("eos_token"), template),
            lead=_lead(text),
            digest=digest.hexdigest(),
        )

    def encode_pieces(self, pieces: Sequence[tuple[str, bool]]) -> list[list[int]]:
        """Ids of plain texts, each with whether it begins a document; without what stands before and behind one.

        Raises:
            InputError: a text is too much for a pattern of the tokenizer, or gives an id beyond the vocabulary.
        """
        count = len(self.lead)
        found = self.text.encode_many([text if begins or not count else _LINE_END + text for text, begins in pieces])
        for index, (text, begins) in enumerate(pieces if count else ()):
            if begins:
                continue
            if tuple(found[index][:count]) == self.lead:
                del found[index][:count]
            else:
                found[index] = self.text.encode(text, parse_special=False, add_bos=False)
        return found

    def close(self) -> None:
        """Ends what the chat template runs in."""
        if self.template is not None:
            self.template.close()


def _beginning(text: TextTokenizer) -> tuple[int, ...]:
    """What `add_bos` puts in front; what tokenizer.json may put behind is left out."""
    plain = text.encode(_PROBE, parse_special=False, add_bos=False)
    whole = text.encode(_PROBE, parse_special=False, add_bos=True)
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return tuple(whole[:start])
    return ()


def _end(text: TextTokenizer, eos_token: str | None, template: str | None) -> int | None:
    ends_turns = eos_token is not None and template is not None and eos_token in template
    names = [*_TEXT_ENDS, eos_token] if ends_turns else [eos_token, *_TEXT_ENDS]
    for name in names:
        token = None if name is None else text.token_id(name)
        if token is not None and (token in text.control_ids or name == eos_token):
            return token
    return None


def _lead(text: TextTokenizer) -> tuple[int, ...]:
    first, both, plain = text.encode_many([_LINE_END, _LINE_END + _PROBE, _PROBE])
    if both == first + plain or both[: len(first)] != first:
        return ()
    return tuple(first)
