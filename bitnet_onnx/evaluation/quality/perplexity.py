"""Windows of texts through models, all of them and their reference side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bitnet_onnx.errors import BitnetOnnxError, InputError
from bitnet_onnx.evaluation._logits import Progress
from bitnet_onnx.evaluation.quality._reader import WindowReader
from bitnet_onnx.evaluation.quality._scores import Distribution
from bitnet_onnx.evaluation.quality._windows_measured import Sums
from bitnet_onnx.evaluation.quality.text import TokenText
from bitnet_onnx.evaluation.quality.windows import Window, WindowRule
from bitnet_onnx.quantized import FloatArray


def check_windows(texts: Sequence[TokenText], rule: WindowRule) -> None:
    """Refuse texts that hold no window.

    Raises:
        InputError: naming the first.
    """
    for text in texts:
        if len(text.ids) < rule.size:
            raise InputError(
                f"{text.name}: {len(text.ids)} tokens do not fill a window of {rule.size}; "
                f"give a longer text, or a smaller window"
            )


def score_text(
    text: TokenText,
    rule: WindowRule,
    models: Sequence[WindowReader],
    reference: WindowReader | None = None,
    *,
    beginning: int | None = None,
    progress: Progress | None = None,
) -> list[Sums]:
    """Score a text under each model; logits of one window at most are held, and of two models.

    Args:
        text: as tokens.
        rule: which of them are scored.
        models: of one vocabulary.
        reference: what they are compared with.
        beginning: the token that stands before each window, where the rule wants one.
        progress: told of each window.

    Returns:
        For each model what its windows add up to.

    Raises:
        BitnetOnnxError: a model gives logits that are not finite, or cannot be run.
    """
    result = [Sums() for _ in models]
    windows = rule.windows(len(text.ids))
    for index, window in enumerate(windows):
        for reader in (*models, *([] if reference is None else [reference])):
            reader.forget()
        _score_window(text, window, models, reference, result, beginning if rule.beginning else None)
        if progress is not None:
            progress(text.name, index + 1, len(windows))
    return result


def _score_window(
    text: TokenText,
    window: Window,
    models: Sequence[WindowReader],
    reference: WindowReader | None,
    result: Sequence[Sums],
    beginning: int | None,
) -> None:
    ids: list[int] = text.ids[window.start : window.stop].tolist()
    head = [] if beginning is None else [beginning]
    # The logits behind a token are those of the next one; behind the last nothing is asked.
    given = [*head, *ids][:-1]
    skip = len(head) + window.first - window.start - 1
    targets = text.ids[window.first : window.stop].astype(np.int64)
    scored, size = window.stop - window.first, text.bytes(window.first, window.stop)
    for sums in result:
        sums.tokens.append(scored)
        sums.bytes.append(size)
        sums.surprise.append(0.0)
        if reference is not None:
            sums.reference.append(0.0)
            sums.divergence.append(0.0)
            sums.agreeing.append(0)
    streams = [model.read(given, skip) for model in models]
    origins = None if reference is None else reference.read(given, skip)
    done = 0
    while done < scored:
        origin = None if origins is None or reference is None else _distribution(next(origins), reference, text, window)
        for model, stream, sums in zip(models, streams, result, strict=True):
            found = _distribution(next(stream), model, text, window)
            wanted = targets[done : done + len(found.logits)]
            sums.surprise[-1] += _sum(found.surprise(wanted), model, text, window)
            if origin is not None and reference is not None:
                each = origin.divergence(found)
                sums.reference[-1] += _sum(origin.surprise(wanted), reference, text, window)
                sums.divergence[-1] += _sum(each, model, text, window)
                sums.divergences.append(each.astype(np.float32))
                sums.agreeing[-1] += int(np.count_nonzero(found.best() == origin.best()))
        done += len(wanted)


def _distribution(logits: FloatArray, reader: WindowReader, text: TokenText, window: Window) -> Distribution:
    found = Distribution.of(logits)
    _check(found.log_sum, reader, text, window)
    return found


def _sum(values: npt.NDArray[np.float64], reader: WindowReader, text: TokenText, window: Window) -> float:
    _check(values, reader, text, window)
    return float(values.sum())


def _check(values: npt.NDArray[np.float64], reader: WindowReader, text: TokenText, window: Window) -> None:
    if not np.isfinite(values).all():
        raise BitnetOnnxError(
            f"{reader.package.directory}: gives logits that are not finite in the tokens {window.start} to "
            f"{window.stop} of {text.name}: the weights are broken, see `bitnet-onnx validate`"
        )
