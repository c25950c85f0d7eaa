"""One greedy answer of the zoo's small model, against which every application that opens the package is held.

With the operator library an application gives exactly these tokens. Without it the function bodies run, which round
activations in blocks instead of token by token: there the logits before each token are compared, the tokens before it
being given, so that one early difference does not change everything behind it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from package_logits import PackageLogits

BITNET_TINY = Path(__file__).parents[2] / "model_zoo/packages/bitnet-tiny"
PROMPT = "In the beginning"
#: The prompt as the model reads it, `<s>` included.
PROMPT_IDS = (0, 845, 261, 3722)
TEXT = " of the LORD" + 3 * ", and in the day of the LORD" + ", and in the day"
_CLAUSE = (13, 276, 296, 261, 544)
_OF_THE_LORD = (277, 261, 434)
#: The 32 tokens of the answer; none ends it.
TOKENS = (*_OF_THE_LORD, *3 * (*_CLAUSE, *_OF_THE_LORD), *_CLAUSE)

#: Largest `distance` of function bodies. The steps of five prompts gave 0.028 at most and 0.014 in the mean; a model
#: without the attention or the feed-forward network of any one layer gives 0.12 at least.
TOLERANCE = 0.06


def teacher_forced(package: Path = BITNET_TINY, library: Path | None = None) -> npt.NDArray[np.float32]:
    """Logits `[32, vocab]` before each token of `TOKENS`, by plain onnxruntime; without `library` on the bodies."""
    ids = np.array(PROMPT_IDS + TOKENS)
    logits: npt.NDArray[np.float32] = PackageLogits(package, library)(ids)[len(PROMPT_IDS) - 1 : -1]
    return logits


def distance(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    """The largest relative distance of a step: |found - expected| over |expected - its mean|, rows `[steps, vocab]`."""
    assert found.shape == expected.shape
    spread = expected - expected.mean(axis=1, keepdims=True)
    return float((np.linalg.norm(found - expected, axis=1) / np.linalg.norm(spread, axis=1)).max())
