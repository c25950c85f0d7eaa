"""Configurations that are refused, each by the name of a field."""

from __future__ import annotations

import pytest
from family_specs import spec

from bitnet_onnx.errors import CheckpointError, InputError, UnsupportedError

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model_type": "absent"}, CheckpointError, "config.json: model_type is missing"),
        ({"model_type": 3}, CheckpointError, "model_type is 3: expected a string"),
        ({"model_type": "lama"}, UnsupportedError, r"'lama' is not supported; did you mean 'llama'\? \(known: .*llama"),
        ({"model_type": "Qwen2"}, UnsupportedError, r"'Qwen2' is not supported; did you mean 'qwen2'\?"),
        ({"model_type": "t5"}, UnsupportedError, r"'t5' is not supported \(known: bitnet"),
        ({"hidden_act": "gleu"}, UnsupportedError, r"hidden_act 'gleu' is not supported; did you mean 'gelu'\?"),
        ({"hidden_act": "mish"}, UnsupportedError, r"hidden_act 'mish' is not supported \(known: silu, relu"),
        ({"hidden_size": 0}, CheckpointError, "hidden_size is 0: expected a whole number from 1"),
        ({"hidden_size": -64}, CheckpointError, "hidden_size is -64"),
        ({"hidden_size": 64.0}, CheckpointError, "hidden_size is 64.0"),
        ({"hidden_size": True}, CheckpointError, "hidden_size is True"),
        ({"hidden_size": "64"}, CheckpointError, "hidden_size is '64'"),
        ({"hidden_size": 1 << 63}, CheckpointError, "hidden_size is 9223372036854775808"),
        ({"num_attention_heads": 7}, CheckpointError, "num_attention_heads 7 does not divide hidden_size 64"),
        ({"num_attention_heads": 65}, CheckpointError, "num_attention_heads 65 does not divide"),
        ({"num_key_value_heads": 3}, CheckpointError, "num_key_value_heads is 3"),
        ({"num_key_value_heads": 8}, CheckpointError, "num_key_value_heads is 8"),
        ({"num_key_value_heads": [4, 2]}, CheckpointError, r"num_key_value_heads is \[4, 2\]: expected a whole number"),
        ({"head_dim": 15}, CheckpointError, "15 of 15 features of a head are rotated: expected an even number"),
        ({"rms_norm_eps": 0}, CheckpointError, "rms_norm_eps is 0: expected a finite number greater than 0"),
        ({"rms_norm_eps": "1e-5"}, CheckpointError, "rms_norm_eps is '1e-5': expected a number"),
        ({"rms_norm_eps": float("inf")}, CheckpointError, "rms_norm_eps is inf"),
        ({"rms_norm_eps": 10**400}, CheckpointError, r"rms_norm_eps is 1000.*\.\.\.: expected a finite"),
        ({"tie_word_embeddings": 1}, CheckpointError, "tie_word_embeddings is 1: expected true or false"),
        ({"rope_theta": float("nan")}, CheckpointError, "rope_theta is nan"),
        ({"rope_scaling": "linear"}, CheckpointError, "rope_scaling is 'linear': expected an object"),
        ({"rope_scaling": {"type": "yarm", "factor": 2}}, UnsupportedError, "rope type 'yarm'.* did you mean 'yarn'"),
        ({"rope_scaling": {"type": "mrope"}}, UnsupportedError, r"'mrope' is not supported.*\(known: default, linear"),
        ({"rope_scaling": {"type": "linear"}}, CheckpointError, "config.json: rope_scaling: factor is missing"),
        ({"rope_scaling": {"type": "dynamic"}}, CheckpointError, "config.json: rope_scaling: factor is missing"),
        ({"rope_scaling": {"type": 7}}, CheckpointError, "rope_scaling: type is 7"),
        ({"rope_scaling": {"rope_type": "llama3"}}, CheckpointError, "rope_scaling: factor is missing"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, CheckpointError, "must exceed low_freq_factor 1.0"),
        (
            {"rope_scaling": LONGROPE | {"short_factor": [1.0]}},
            CheckpointError,
            "1 numbers in short_factor: expected 8",
        ),
        ({"rope_scaling": {"type": "longrope"}}, CheckpointError, "0 numbers in short_factor: expected 8"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            UnsupportedError,
            "'full_attention' has rotary parameters of its own",
        ),
        ({"rope_factors": [1.0]}, CheckpointError, "1 rope factors: expected 8"),
        ({"rope_factors": [1.0] * 7 + [0]}, CheckpointError, "rope_factors: 7 is 0"),
        ({"rope_factors": 3}, CheckpointError, "rope_factors is 3: expected a list of numbers"),
        ({"model_type": "mistral", "sliding_window": 0}, CheckpointError, "sliding_window is 0"),
        ({"model_type": "qwen2", "max_window_layers": -1}, CheckpointError, "max_window_layers is -1: .* from 0"),
        (
            {"model_type": "qwen2", "layer_types": ["sliding_attention", "full_attention"]},
            CheckpointError,
            "layer 0 has the type 'sliding_attention', but there is no sliding_window in use",
        ),
        ({"model_type": "qwen2", "layer_types": ["full_attention"]}, CheckpointError, "1 entries: expected 2, one for"),
        (
            {"model_type": "qwen3", "layer_types": ["full_atention"] * 2},
            UnsupportedError,
            "layer type 'full_atention' is not supported; did you mean 'full_attention'",
        ),
        ({"model_type": "qwen3", "layer_types": ["linear_attention"] * 2}, UnsupportedError, "'linear_attention'"),
        ({"model_type": "qwen3", "num_hidden_layers": 10001}, CheckpointError, "10001: the limit is 10000"),
        ({"model_type": "smollm3", "no_rope_layers": [1]}, CheckpointError, "1 entries: expected one for each of 2"),
        ({"model_type": "smollm3", "no_rope_layers": [1, 2]}, CheckpointError, r"\[1, 2\]: expected a list of 0 and 1"),
        ({"model_type": "smollm3", "no_rope_layer_interval": 0}, CheckpointError, "no_rope_layer_interval is 0"),
        ({"model_type": "granite", "logits_scaling": 0}, CheckpointError, "logits_scaling is 0"),
        ({"model_type": "granite", "attention_multiplier": -1}, CheckpointError, "attention_multiplier is -1"),
        ({"model_type": "phi3", "partial_rotary_factor": 1.5}, CheckpointError, "partial_rotary_factor is 1.5"),
        ({"model_type": "phi3", "partial_rotary_factor": 0.1}, CheckpointError, "1 of 16 features of a head are rotat"),
    ],
)
def test_refusals_name_the_field(changes: dict[str, object], error: type[InputError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        spec(**changes)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "changes",
    [
        {"use_qkv_bias": True},
        {"qk_layernorm": True},
        {"num_local_experts": 8},
        {"num_experts": 64},
        {"clip_qkv": 8.0},
        {"use_mrope": True},
        {"sliding_window": 1024},
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"layer_types": "sliding_attention"},
        {"attn_logit_softcapping": 50.0},
        {"final_logit_softcapping": 30.0},
        {"scale_attn_by_inverse_layer_idx": True},
        {"mlp_layers": [1]},
        {"no_rope_layers": [1, 0]},
        {"partial_rotary_factor": 0.5},
        {"is_causal": False},
        {"per_layer_config": {"0": {"head_dim": 32}}},
        {"logits_scaling": 8.0},
        {"model_type": "qwen3", "embedding_multiplier": 12.0},
        {"model_type": "mistral", "layer_types": ["sliding_attention"] * 2},
        {"model_type": "granite", "sliding_window": 64},
        {"model_type": "bitnet", "partial_rotary_factor": 0.5},
    ],
)
def test_fields_that_a_family_does_not_read_are_refused_by_name(changes: dict[str, object]) -> None:
    field = list(changes)[-1]
    with pytest.raises(
        UnsupportedError, match=f"config.json: {field} is .*: it changes what the model computes"
    ) as caught:
        spec(**changes)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("field", ["partial_rotary_factor", "long_mscale", "mrope_section"])
@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
def test_the_same_within_rotary_parameters(place: str, field: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{place}: {field} is 0.5"):
        spec(**{place: {"rope_type": "default", field: 0.5}})


@pytest.mark.parametrize(
    "changes",
    [
        {"sliding_window": 4096, "max_position_embeddings": 4096},
        {"sliding_window": 16, "use_sliding_window": False},
        {"layer_types": ["full_attention"] * 2},
        {"no_rope_layers": [1, 1]},
        dict.fromkeys(("clip_qkv", "sliding_window", "layer_types", "final_logit_softcapping")),
        {"num_experts": 0, "mlp_only_layers": [], "per_layer_config": {}, "use_mrope": False, "logits_scaling": 1.0},
    ],
)
def test_values_that_do_nothing_are_not_refused(changes: dict[str, object]) -> None:
    context = changes.get("max_position_embeddings")
    assert spec(**changes) == spec(max_position_embeddings=context)
