"""SmolLM3: Llama in which every fourth layer knows no positions; only those may have a sliding window."""

from __future__ import annotations

from dataclasses import replace

from bitnet_onnx.converters._config import Config
from bitnet_onnx.converters.families import llama
from bitnet_onnx.converters.families._family import Family
from bitnet_onnx.converters.families._layers import FULL, SLIDING, attention_layers, layer_types
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.errors import CheckpointError


def spec(config: Config) -> DecoderSpec:
    """Read a SmolLM3 configuration; what is absent has the value that transformers gives it."""
    filled = config.with_absent(num_key_value_heads=4).with_defaults(
        vocab_size=128256,
        hidden_size=2048,
        num_hidden_layers=36,
        num_attention_heads=16,
        max_position_embeddings=32768,
        rope_theta=2000000.0,
        tie_word_embeddings=True,
    )
    base = llama.spec(filled)
    count, rotary = base.num_hidden_layers, base.attention[0].rotary
    rotated = filled.flags("no_rope_layers")
    interval = filled.integer("no_rope_layer_interval", 4)
    if rotated and len(rotated) < count:
        raise CheckpointError(
            f"config.json: no_rope_layers has {len(rotated)} entries: expected one for each of {count} layers"
        )
    used = filled.boolean("use_sliding_window", False) and "sliding_window" in filled
    window = filled.integer("sliding_window") if used else 0

    def has_positions(index: int) -> bool:
        return rotated[index] if rotated else (index + 1) % interval != 0

    types = layer_types(filled, count, lambda index: SLIDING if window and not has_positions(index) else FULL)
    rotaries = tuple(rotary if has_positions(index) else None for index in range(count))
    return replace(base, family="smollm3", attention=attention_layers(types, window, rotaries))


FAMILY = Family(
    "smollm3",
    spec,
    llama.FAMILY.source,
    reads=("layer_types", "no_rope_layers", "sliding_window"),
    ignored=llama.FAMILY.ignored,
)
