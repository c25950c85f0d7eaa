"""A tokenizer for a model that begins at random."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Final

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from bitnet_onnx.errors import InputError
from bitnet_onnx.package_format import TOKENIZER, TOKENIZER_CONFIG

BOS: Final = "<s>"
EOS: Final = "</s>"
_BYTES: Final = 256
_MAX_VOCAB: Final = 1 << 20
#: A longer token would be one of a text without spaces.
_MAX_TOKEN: Final = 32
#: The trainer takes quadratic time in the length of a word: longer runs are cut.
_LONG: Final = re.compile(r"\S{256}|\s{256}")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> dict[str, bytes]:
    """A byte-level BPE of the texts, as tokenizer.json and tokenizer_config.json: the same for the same texts.

    Id 0 begins a text, id 1 ends it, then the 256 bytes and the merges. Texts too few for `vocab_size` give fewer.

    Args:
        texts: read once.
        vocab_size: with bytes and special tokens.

    Raises:
        InputError: `vocab_size` is too small for the bytes, or too large.
    """
    if not _BYTES + 2 <= vocab_size <= _MAX_VOCAB:
        raise InputError(
            f"model.architecture: vocab_size is {vocab_size}, expected {_BYTES + 2} to {_MAX_VOCAB} for a "
            f"byte-level tokenizer; or give model.tokenizer"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(text, special=True, normalized=False) for text in (BOS, EOS)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=_MAX_TOKEN,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_short_words(texts), trainer)
    begin = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B:1", special_tokens=[(BOS, begin)]
    )
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": BOS,
        "clean_up_tokenization_spaces": False,
        "eos_token": EOS,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return {
        TOKENIZER: tokenizer.to_str().encode(),
        TOKENIZER_CONFIG: json.dumps(config, indent=2, sort_keys=True).encode(),
    }


def _short_words(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        start = 0
        for long in _LONG.finditer(text):
            yield text[start : long.end()]
            start = long.end()
        yield text[start:]
