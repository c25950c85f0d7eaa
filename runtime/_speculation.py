"""Whose next tokens are guessed in a step, and how many."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from bitnet_onnx.errors import InputError
from bitnet_onnx.runtime._prompt_lookup import Draft

#: What a call of the graph costs beside its positions, as so many of them: 5 with 64 tokens of context, 3 with 512
#: (SmolLM2 135M on 2 cores).
CALL: Final = 4
#: Most positions of the rows with drafts. Beyond, a call of its own is no longer much of what a step costs.
POSITIONS: Final = 64
#: Part of what a step costs that drafts must be expected to save. A token that comes sooner saves its share of a call
#: only if its slot is used sooner, by another answer or because all are ahead: what is saved may be less.
_MARGIN: Final = 0.25
#: Steps of more rows have no drafts: their call is a small part of them, and rows that are ahead save none of it while
#: others are not. Measured with 16 rows of code that is copied: 0.9 of the speed without drafts.
MOST_ROWS: Final = 4
#: Longest draft.
MAX_DRAFT: Final = 32
#: Logged where drafts would change answers.
IDLE: Final = "speculate is idle: without the operator library it would change answers by rounding"


def least_chance(rows: int) -> float:
    """Below this chance of being right, a drafted token costs a step of so many rows more than it saves.

    Without drafts a step costs `CALL + rows` positions and gives `rows` tokens, so a token is worth
    `1 + CALL / rows` positions; drafting one costs a position.
    """
    return rows / (rows + CALL)


def check_draft_tokens(name: str, count: object) -> None:
    """Refuses what is no length of a draft.

    Raises:
        InputError: it is no integer from 0 to `MAX_DRAFT`.
    """
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= MAX_DRAFT:
        raise InputError(f"{name} is {count!r:.40}, expected an integer from 0 to {MAX_DRAFT}")


def choose_drafts(drafts: Sequence[Draft]) -> list[tuple[int, ...]]:
    """For each row of a step the tokens to try, or none: what saves most, by the chances, if it saves enough.

    Rows with drafts are padded to the longest of them, and either all rows are or those with drafts have a call of
    their own.
    """
    rows = len(drafts)
    worth = 1 + CALL / rows
    # What the first 0, 1, 2, ... tokens of each draft are expected to save.
    saved = [[0.0, *accumulate(worth * chance for chance in draft.chances)] for draft in drafts]
    best, best_width = _MARGIN * (CALL + rows), 0
    for width in range(1, max(len(draft.tokens) for draft in drafts) + 1):
        gains = [gain for each in saved if (gain := each[min(width, len(each) - 1)] - width) > 0]
        gain = sum(gains) - min(CALL, width * (rows - len(gains)))
        if gain > best and len(gains) * (width + 1) <= POSITIONS:
            best, best_width = gain, width
    return [
        draft.tokens[:best_width] if each[min(best_width, len(each) - 1)] > best_width else ()
        for draft, each in zip(drafts, saved, strict=True)
    ]
