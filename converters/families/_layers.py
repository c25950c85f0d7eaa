"""Which layers see all positions and which only a window."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Final

from bitnet_onnx.converters._config import Config
from bitnet_onnx.decoder import Attention, Rotary
from bitnet_onnx.errors import CheckpointError, UnsupportedError

FULL: Final = "full_attention"
SLIDING: Final = "sliding_attention"
_KNOWN: Final = (FULL, SLIDING)
#: Layers are listed before the tensors are looked at: a lie must not fill the memory.
_MAX_LAYERS: Final = 10_000


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
    if count > _MAX_LAYERS:
        raise CheckpointError(f"config.json: num_hidden_layers is {count}: the limit is {_MAX_LAYERS}")
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


def attention_layers(types: tuple[str, ...], window: int, rotary: tuple[Rotary | None, ...]) -> tuple[Attention, ...]:
    """How each layer attends; a single entry where all do alike.

    Args:
        types: of each layer.
        window: positions that a layer of type `sliding_attention` sees, or 0 where the file names none.
        rotary: of each layer, or one for all of them.

    Raises:
        CheckpointError: there are such layers, but no window.
    """
    if SLIDING in types and not window:
        raise CheckpointError(
            f"config.json: layer {types.index(SLIDING)} has the type {SLIDING!r}, but there is no sliding_window in use"
        )
    rotaries = rotary if len(rotary) == len(types) else rotary[:1] * len(types)
    layers = tuple(
        Attention(rotation, window if name == SLIDING else 0) for name, rotation in zip(types, rotaries, strict=True)
    )
    return layers[:1] if len(set(layers)) == 1 else layers
