"""The package's tokenizer.json behind a small interface that keeps control tokens apart from text."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self, TypeVar

from tokenizers import Tokenizer

from bitnet_onnx.errors import InputError, PackageError
from bitnet_onnx.runtime._json import decode_utf8, read_bytes
from bitnet_onnx.runtime._malloc import return_free_memory
from bitnet_onnx.runtime._native_errors import one_line
from bitnet_onnx.runtime._tokenizer_file import check_tokenizer_file
from bitnet_onnx.runtime.package import MAX_TOKENIZER_BYTES, PackageInfo

T = TypeVar("T")


class TextTokenizer:
    """Encodes and decodes by tokenizer.json, with the beginning-of-text token as Hugging Face adds it.

    Raises:
        PackageError: tokenizer.json cannot be read.
    """

    def __init__(self, package: PackageInfo) -> None:
        data = read_bytes(package.tokenizer_path, MAX_TOKENIZER_BYTES)
        self._open(
            data,
            package.tokenizer_path,
            package.architecture.vocab_size,
            package.special_tokens.get("bos_token"),
            package.add_bos_token,
        )

    @classmethod
    def from_bytes(
        cls, data: bytes, source: Path, *, vocab_size: int, bos_token: str | None, add_bos_token: bool
    ) -> Self:
        """A tokenizer without a package.

        Args:
            data: the content of tokenizer.json.
            source: what messages call it.
            vocab_size: of the model.
            bos_token: as tokenizer_config.json names it.
            add_bos_token: as tokenizer_config.json says it.

        Raises:
            PackageError: it cannot be read.
        """
        tokenizer = cls.__new__(cls)
        tokenizer._open(data, source, vocab_size, bos_token, add_bos_token)
        return tokenizer

    def _open(self, data: bytes, source: Path, vocab_size: int, bos_token: str | None, add_bos_token: bool) -> None:
        check_tokenizer_file(data, source)
        self._tokenizer = parse_tokenizer(data, source)
        del data
        # What parsing freed would otherwise stay, and count, beside the weights: tens of megabytes.
        return_free_memory()
        # A training-time truncation left in the file would cut prompts without a word.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._lock = threading.Lock()
        self._vocab_size = vocab_size
        self._add_bos = add_bos_token
        self.bos_id: int | None = None if bos_token is None else self.token_id(bos_token)
        self.control_ids: frozenset[int] = frozenset(
            token for token, added in self._tokenizer.get_added_tokens_decoder().items() if added.special
        )

    @property
    def inner(self) -> Tokenizer:
        """The tokenizer of the `tokenizers` library, to be read only."""
        return self._tokenizer

    def token_id(self, text: str) -> int | None:
        """The id of the token whose text is exactly `text`, if the vocabularies have it."""
        token: int | None = self._tokenizer.token_to_id(text)
        return token if token is not None and token < self._vocab_size else None

    def encode(self, text: str, *, parse_special: bool, add_bos: bool) -> list[int]:
        """Token ids of `text`.

        Args:
            text: any Unicode text.
            parse_special: whether the text of a control token becomes that token or plain text.
            add_bos: put what tokenizer.json and tokenizer_config.json want before a text; false for the parts
                of a chat, whose template writes it.

        Raises:
            InputError: `text` holds a lone surrogate, is too much for a pattern of the tokenizer, or gives an id that
                the model does not have.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(f"the text is not valid Unicode: lone surrogate at character {error.start}") from None
        # The switch belongs to the whole tokenizer.
        with self._lock:
            self._tokenizer.encode_special_tokens = not parse_special
            ids: list[int] = _guarded(lambda: self._tokenizer.encode(text, add_special_tokens=add_bos).ids)
        if add_bos and self._add_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        self._check_ids(ids)
        return ids

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of plain texts without a beginning token, on all cores.

        Raises:
            InputError: as `encode`; it does not say which text.
        """
        with self._lock:
            self._tokenizer.encode_special_tokens = True
            found = _guarded(lambda: self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False))
        ids = [encoding.ids for encoding in found]
        for one in ids:
            self._check_ids(one)
        return ids

    def encode_with_offsets(self, text: str, *, parse_special: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids without a beginning token, and the characters `(start, stop)` that each stands for.

        Args:
            text: any Unicode text.
            parse_special: as of `encode`.

        Raises:
            InputError: as `encode`.
        """
        with self._lock:
            self._tokenizer.encode_special_tokens = not parse_special
            # It would trim white space off the offsets.
            processor = self._tokenizer.post_processor
            self._tokenizer.post_processor = None
            try:
                encoding = self._tokenizer.encode(text, add_special_tokens=False)
            finally:
                self._tokenizer.post_processor = processor
        self._check_ids(encoding.ids)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without control tokens; ids that the tokenizer does not know give nothing."""
        text: str = _guarded(lambda: self._tokenizer.decode(ids, skip_special_tokens=True))
        return text

    def _check_ids(self, ids: Sequence[int]) -> None:
        if ids and max(ids) >= self._vocab_size:
            raise InputError(
                f"the tokenizer gives id {max(ids)}, outside the model's vocabulary of {self._vocab_size}: "
                f"tokenizer.json does not belong to this model"
            )


def _guarded(work: Callable[[], T]) -> T:
    """What `work` gives.

    Raises:
        InputError: the library gave up, as on a text for which a pattern takes too many steps.
    """
    try:
        return work()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the Rust library is no Exception
        raise InputError(f"tokenizer.json cannot be applied to this text: {one_line(error)}") from None


def parse_tokenizer(data: bytes, source: Path | str) -> Tokenizer:
    """A tokenizer from the content of tokenizer.json.

    Raises:
        PackageError: it cannot be read; the message begins with `source`.
    """
    try:
        return Tokenizer.from_buffer(data)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the Rust library is no Exception
        decode_utf8(data, Path(source))
        raise PackageError(f"{source}: not a usable tokenizer: {one_line(error)}") from None
