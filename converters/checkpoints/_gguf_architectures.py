"""The architectures that are read from GGUF: what each calls its tensors, and what its metadata mean.

Names and keys: the `gguf` package and the converters of llama.cpp. On the right stand the names, layouts and
configuration keys of transformers.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bitnet_onnx.converters.checkpoints import _gguf_options as options
from bitnet_onnx.converters.checkpoints._gguf_metadata import Metadata
from bitnet_onnx.errors import UnsupportedError
from bitnet_onnx.json_input import shown

#: Divisors of the rotary inverse frequencies, one for each pair of a head.
ROPE_FACTORS = "rope_freqs"
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long", "rope_factors_short"

Names = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Architecture:
    """How one `general.architecture` of GGUF maps to transformers."""

    #: `model_type` and `architectures[0]` of config.json.
    model_type: str
    class_name: str
    hidden_act: str
    #: Names without `blk.N.` and `.weight` or `.bias`, to the names below `layers`.
    block: Names
    #: Names of tensors outside the blocks, without `.weight` or `.bias`.
    top: Names = field(default_factory=lambda: _TOP)
    layers: str = "model.layers"
    #: Tensors that become part of the configuration.
    factors: frozenset[str] = frozenset()
    #: Rows stand in rotary pairs (0, half, 1, half + 1, ...) within each head.
    paired: frozenset[str] = frozenset()
    #: Rows are all of q, all of k, all of v; transformers has q, k and v of one head after the other.
    by_head: frozenset[str] = frozenset()
    #: Rows are all of q, all of k, all of v, under one name; transformers has three tensors, named by `{}`.
    fused: frozenset[str] = frozenset()
    #: Matrices that transformers stores as `[in, out]`.
    transposed: frozenset[str] = frozenset()
    #: What the GGUF has added to the weights of norms.
    norm_offset: float = 0.0
    #: A matrix may have a `.scale`, a factor on its output.
    scales: bool = False
    #: Keys of config.json that are called otherwise than in Llama; None where there is no such key.
    renamed: Mapping[str, str | None] = field(default_factory=dict)
    #: Metadata beyond those that all architectures know, which say the same in all.
    keys: frozenset[str] = frozenset()
    #: The norms' epsilon: metadata key.
    epsilon: str = "attention.layer_norm_rms_epsilon"
    #: The rotary part of a head may be less than the whole.
    partial_rotary: bool = False
    #: Keys of config.json beyond the common ones, from the metadata and the common ones.
    details: Callable[[Metadata, Mapping[str, object]], dict[str, object]] = options.none


_TOP: Names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

_LLAMA: Names = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HEAD_NORMS: Names = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_SUB_NORMS: Names = {"attn_sub_norm": "self_attn.attn_sub_norm", "ffn_sub_norm": "mlp.ffn_sub_norm"}
_GEMMA: Names = {
    **_LLAMA,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_OLMO2: Names = {
    **{name: target for name, target in _LLAMA.items() if name not in {"attn_norm", "ffn_norm"}},
    **_HEAD_NORMS,
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_PHI3: Names = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}
_PHI2: Names = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.{}_proj",
    "attn_output": "self_attn.dense",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
}
_GPT2: Names = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_GPTNEOX: Names = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "attention.query_key_value",
    "attn_output": "attention.dense",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}

_PAIRED = frozenset({"attn_q", "attn_k"})
_LAYER_NORM = "attention.layer_norm_epsilon"
_WINDOW = frozenset({"attention.sliding_window", "attention.sliding_window_pattern"})

ARCHITECTURES: Mapping[str, Architecture] = {
    # Mistral, SmolLM, Falcon3 and others are this one too.
    "llama": Architecture(
        "llama", "LlamaForCausalLM", "silu", _LLAMA, factors=frozenset({ROPE_FACTORS}), paired=_PAIRED
    ),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", "silu", _LLAMA),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", "silu", {**_LLAMA, **_HEAD_NORMS}),
    "gemma": Architecture(
        "gemma", "GemmaForCausalLM", "gelu_pytorch_tanh", _LLAMA, norm_offset=1.0, details=options.gemma
    ),
    "gemma2": Architecture(
        "gemma2",
        "Gemma2ForCausalLM",
        "gelu_pytorch_tanh",
        _GEMMA,
        norm_offset=1.0,
        keys=_WINDOW | {"attn_logit_softcapping", "final_logit_softcapping"},
        details=options.gemma2,
    ),
    "gemma3": Architecture(
        "gemma3_text",
        "Gemma3ForCausalLM",
        "gelu_pytorch_tanh",
        {**_GEMMA, **_HEAD_NORMS},
        norm_offset=1.0,
        keys=_WINDOW | {"rope.freq_base_swa", "final_logit_softcapping"},
        details=options.gemma3,
    ),
    "phi3": Architecture(
        "phi3",
        "Phi3ForCausalLM",
        "silu",
        _PHI3,
        factors=frozenset({LONG_FACTORS, SHORT_FACTORS}),
        keys=frozenset({"attention.sliding_window"}),
        partial_rotary=True,
        details=options.phi3,
    ),
    "granite": Architecture(
        "granite",
        "GraniteForCausalLM",
        "silu",
        _LLAMA,
        factors=frozenset({ROPE_FACTORS}),
        paired=_PAIRED,
        keys=frozenset({"attention.scale", "embedding_scale", "residual_scale", "logit_scale"}),
        details=options.granite,
    ),
    "olmo2": Architecture("olmo2", "Olmo2ForCausalLM", "silu", _OLMO2),
    "smollm3": Architecture(
        "smollm3",
        "SmolLM3ForCausalLM",
        "silu",
        _LLAMA,
        factors=frozenset({ROPE_FACTORS}),
        paired=_PAIRED,
        details=options.smollm3,
    ),
    "bitnet": Architecture("bitnet", "BitNetForCausalLM", "silu", {**_LLAMA, **_SUB_NORMS}, scales=True),
    # bitnet.cpp's name for 2B-4T and its like.
    "bitnet-b1.58": Architecture("bitnet", "BitNetForCausalLM", "relu2", {**_LLAMA, **_SUB_NORMS}, scales=True),
    "gpt2": Architecture(
        "gpt2",
        "GPT2LMHeadModel",
        "gelu_new",
        _GPT2,
        top={
            "token_embd": "transformer.wte",
            "position_embd": "transformer.wpe",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
        },
        layers="transformer.h",
        transposed=frozenset({"attn_qkv", "attn_output", "ffn_up", "ffn_down"}),
        renamed=options.GPT2_NAMES,
        epsilon=_LAYER_NORM,
    ),
    "gptneox": Architecture(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        "gelu",
        _GPTNEOX,
        top={
            "token_embd": "gpt_neox.embed_in",
            "output_norm": "gpt_neox.final_layer_norm",
            "output": "embed_out",
        },
        layers="gpt_neox.layers",
        by_head=frozenset({"attn_qkv"}),
        renamed=options.GPTNEOX_NAMES,
        keys=frozenset({"use_parallel_residual"}),
        epsilon=_LAYER_NORM,
        partial_rotary=True,
        details=options.gptneox,
    ),
    "phi2": Architecture(
        "phi",
        "PhiForCausalLM",
        "gelu_new",
        _PHI2,
        top={**_TOP, "output_norm": "model.final_layernorm"},
        fused=frozenset({"attn_qkv"}),
        renamed=options.PHI2_NAMES,
        epsilon=_LAYER_NORM,
        partial_rotary=True,
        details=options.phi2,
    ),
}


def architecture_of(metadata: Metadata) -> Architecture:
    """The architecture's row of the table.

    Raises:
        UnsupportedError: it has none.
    """
    name = metadata.text("general.architecture")
    if name not in ARCHITECTURES:
        raise UnsupportedError(
            f"{metadata.source}: architecture {shown(name)} is not read from GGUF{nearest(name, list(ARCHITECTURES))} "
            f"(known: {', '.join(sorted(ARCHITECTURES))})"
        )
    return ARCHITECTURES[name]


def nearest(name: str, known: list[str]) -> str:
    """A hint with the known name that `name` looks like, or nothing."""
    found = difflib.get_close_matches(name[:127], known, n=1)
    return f"; the nearest known is {found[0]!r}" if found else ""
