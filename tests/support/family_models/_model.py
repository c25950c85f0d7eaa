from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tiny_models import PROMPT_LENGTHS


@dataclass(frozen=True)
class FamilyModel:
    """One tiny decoder.

    Attributes:
        config: content of config.json.
        one_by_one: the reference reads tokens one by one: dynamic scaling of rotary embeddings depends on it.
        context: what `--context` is set to.
        prompt_lengths: of the prompts in the golden file.
        norms_add_one: norms multiply with `1 + weight`.
        transposed: parts of the names of tensors that are stored `[in, out]`.
        embeddings: parts of the names of tables of embeddings.
        embedding_size: deviation of embeddings.
    """

    config: Mapping[str, object]
    one_by_one: bool = False
    context: int | None = None
    prompt_lengths: tuple[int, ...] = PROMPT_LENGTHS
    norms_add_one: bool = False
    transposed: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ("embed", "wte", "wpe")
    embedding_size: float = 1.0
