"""Loads a tokenizer.json in a limited process; started by `_tokenizer_check.py`.

The library that reads it aborts the process where memory ends, and a few bytes of a foreign file can ask for gigabytes
or for minutes: a compiled character map with a length in it, a long regular expression, a long piece of a unigram
model. Only the operating system can end those reliably. This file imports nothing of bitnet_onnx, so that the process
starts quickly.
"""

from __future__ import annotations

from tokenizers import Tokenizer


def answer(data: bytes) -> dict[str, object]:
    """The token with the highest id as `token` and `id` (None where there are no tokens), or `error`."""
    try:
        vocabulary: dict[str, int] = Tokenizer.from_str(data.decode("utf-8")).get_vocab(with_added_tokens=True)
    except BaseException as error:  # a panic of the library's Rust code is no Exception
        return {"error": str(error)}
    if not vocabulary:
        return {"token": None, "id": None}
    token, highest = max(vocabulary.items(), key=lambda item: item[1])
    return {"token": token, "id": highest}
