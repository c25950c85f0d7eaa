"""Whether a tokenizer.json can be used at all, and whether its ids exist in the model."""

from __future__ import annotations

from tokenizers import Tokenizer

from bitnet_onnx.errors import CheckpointError
from bitnet_onnx.json_input import shown


def check_tokenizer(data: bytes, source: str, vocab_size: object) -> None:
    """Load `tokenizer.json` and compare its ids with the rows of the embedding.

    Raises:
        CheckpointError: it does not load, or an id is `vocab_size` or more.
    """
    try:
        tokenizer = Tokenizer.from_str(data.decode("utf-8"))
        vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{source}: byte {error.start} is not UTF-8") from error
    except BaseException as error:
        # The library raises plain Exception, and a panic of its Rust code is a BaseException of its own.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"{source}: not a usable tokenizer: {shown(str(error))}") from error
    if not vocabulary:
        raise CheckpointError(f"{source}: the vocabulary is empty")
    token, highest = max(vocabulary.items(), key=lambda item: item[1])
    if isinstance(vocab_size, int) and highest >= vocab_size:
        raise CheckpointError(
            f"{source}: token {shown(token)} has id {highest}, but the model has {vocab_size} rows (vocab_size); "
            "resize the embeddings or remove the token"
        )
