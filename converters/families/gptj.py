"""GPT-J: attention and MLP read one norm, neighbouring features are rotated in pairs, the head has a bias."""

from __future__ import annotations

from typing import Final

from bitnet_onnx.converters._config import Config
from bitnet_onnx.converters.families._activation import activation
from bitnet_onnx.converters.families._family import Family, named, replaced
from bitnet_onnx.converters.families._sizes import divided
from bitnet_onnx.decoder import Attention, DecoderSpec, Norm, Residual, Rotary
from bitnet_onnx.errors import UnsupportedError

_NAMES: Final = {
    "embed_tokens.": "wte.",
    "layers.": "h.",
    ".input_norm.": ".ln_1.",
    ".attn.o_proj.": ".attn.out_proj.",
    ".mlp.up_proj.": ".mlp.fc_in.",
    ".mlp.down_proj.": ".mlp.fc_out.",
}


def spec(config: Config) -> DecoderSpec:
    """Read a GPT-J configuration; what is absent has the value that transformers gives it."""
    hidden, heads = config.integer("n_embd", 4096), config.integer("n_head", 16)
    rotated = config.optional_integer("rotary_dim", 64)
    if rotated is None:
        raise UnsupportedError("config.json: rotary_dim is null: expected the number of rotated features of a head")
    return DecoderSpec(
        family="gptj",
        vocab_size=config.integer("vocab_size", 50400),
        hidden_size=hidden,
        intermediate_size=config.integer("n_inner", 4 * hidden),
        num_hidden_layers=config.integer("n_layer", 28),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=divided(hidden, heads),
        context_length=config.integer("n_positions", 2048),
        norm_epsilon=config.number("layer_norm_epsilon", 1e-5),
        activation=activation(config, "activation_function", "gelu_new"),
        attention=(Attention(Rotary(10000.0, rotated, interleaved=True)),),
        norm=Norm.LAYER,
        residual=Residual.PARALLEL_SHARED_NORM,
        gated=False,
        mlp_bias=True,
        head_bias=True,
        tie_word_embeddings=config.boolean("tie_word_embeddings", False),
    )


def tensor_name(role: str) -> str:
    """`layers.0.mlp.up_proj.bias` -> `transformer.h.0.mlp.fc_in.bias`."""
    if role.startswith("lm_head."):
        return role
    if role.startswith("norm."):
        return f"transformer.ln_f.{role.removeprefix('norm.')}"
    return f"transformer.{replaced(role, _NAMES)}"


FAMILY = Family(
    "gptj",
    spec,
    named(tensor_name),
    reads=("rotary_dim",),
    # The causal mask, which older files hold in each layer.
    ignored=(".attn.bias", ".attn.masked_bias"),
    aliases={"transformer.": ("",)},
)
