"""Which layers see all positions and which only a window."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Final

from bitnet_onnx.converters._config import Config
from bitnet_onnx.errors import CheckpointError, UnsupportedError

FULL: Final = "full_attention"
SLIDING: Final = "sliding_attention"
_KNOWN: Final = (FULL, SLIDING)


def layer_types(config: Config, count: int, default: Callable[[int], str]) -> tuple[str, ...]:
    """`layer_types` of config.json, one of `full_attention` and `sliding_attention` for each layer.

    Args:
        config: the whole configuration.
        count: number of layers.
        default: the type of a layer, by its index, where the file names none.

    Raises:
        CheckpointError: not one for each layer.
        UnsupportedError: another type of layer, by name.
    """
    types = config.strings("layer_types") or tuple(default(index) for index in range(count))
    if len(types) != count:
        raise CheckpointError(
            f"config.json: layer_types has {len(types)} entries: expected {count}, one for each layer"
        )
    for name in set(types) - set(_KNOWN):
        near = difflib.get_close_matches(name[:60], _KNOWN, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UnsupportedError(
            f"config.json: layer type {name!r:.60} is not supported{hint} (known: {', '.join(_KNOWN)})"
        )
    return types
