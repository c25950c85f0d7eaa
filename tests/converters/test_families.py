"""`config.json` -> `DecoderSpec`, and the names of tensors."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from tiny_models import TINY, tensors

from bitnet_onnx.converters.families import FAMILIES, Config, find
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.errors import CheckpointError, InputError, UnsupportedError

BASE: dict[str, object] = {
    "model_type": "llama",
    "vocab_size": 515,
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

TRANSFORMERS_LLAMA3 = [*(1.0,) * 15, 1.55341, 2.69453, 5.25733, *(8.0,) * 14]


def spec(**changes: object) -> DecoderSpec:
    fields = {key: value for key, value in (BASE | changes).items() if value != "absent"}
    config = Config(fields)
    return find(config).spec(config)


def test_defaults_are_those_of_transformers() -> None:
    assert spec() == DecoderSpec(
        family="llama",
        vocab_size=515,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        context_length=2048,
        norm_epsilon=1e-6,
        activation="silu",
        rotary=spec().rotary,
    )
    assert (spec().rotary.theta, spec().rotary.dim, spec().rotary.divisors) == (10000, 16, ())


def bitnet(**changes: object) -> DecoderSpec:
    return spec(model_type="bitnet", **changes)


def test_bitnet_is_llama_with_defaults_of_its_own_and_sub_norms() -> None:
    assert bitnet() == replace(
        spec(hidden_act="relu2", rms_norm_eps=1e-5, rope_theta=5e5),
        family="bitnet",
        attention_sub_norm=True,
        mlp_sub_norm=True,
    )
    assert bitnet(hidden_act=None, rope_theta=None, rope_parameters={"rope_type": "default"}) == bitnet()
    found = bitnet(hidden_act="silu", rms_norm_eps=1e-6, rope_parameters={"rope_theta": 1e4}, attention_bias=True)
    assert (found.activation, found.norm_epsilon, found.rotary.theta) == ("silu", 1e-6, 1e4)
    assert found.attention_bias


def test_bitnet_names_its_norms() -> None:
    name = FAMILIES["bitnet"].tensor_name
    assert name("layers.3.attn.sub_norm.weight") == "model.layers.3.self_attn.attn_sub_norm.weight"
    assert name("layers.3.mlp.sub_norm.weight") == "model.layers.3.mlp.ffn_sub_norm.weight"
    assert name("layers.3.attn.o_proj.weight") == "model.layers.3.self_attn.o_proj.weight"
    assert name("layers.3.post_attention_norm.weight") == "model.layers.3.post_attention_layernorm.weight"


ONLINE: dict[str, object] = {
    "quant_method": "bitnet",
    "linear_class": "autobitlinear",
    "quantization_mode": "online",
}


@pytest.mark.parametrize("changes", [{}, {"use_rms_norm": False}, {"modules_to_not_convert": ["lm_head"]}])
def test_bitnet_reads_masters_that_are_quantized_online(changes: dict[str, object]) -> None:
    assert bitnet(quantization_config=ONLINE | changes) == bitnet()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quant_method": "gptq"}, "quantization method 'gptq' is not supported"),
        ({"quant_method": None}, "quantization method 'unknown' is not supported"),
        (
            {"quantization_mode": "offline"},
            "'autobitlinear' 'offline' means packed ternary weights, which are not read",
        ),
        ({"quantization_mode": None}, "'autobitlinear' 'offline' means packed ternary weights"),
        ({"linear_class": "bitlinear"}, "'bitlinear' 'online' means packed ternary weights"),
        ({"linear_class": None}, "'bitlinear' 'online' means packed ternary weights"),
        ({"use_rms_norm": True}, "use_rms_norm is true: a norm inside every linear layer"),
        ({"modules_to_not_convert": ["lm_head", "v_proj"]}, "'v_proj'.*only lm_head may be left out"),
    ],
)
def test_bitnet_refuses_other_quantization(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message) as caught:
        bitnet(quantization_config=ONLINE | changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["lm_head", [1], {"lm_head": 1}])
def test_names_that_are_not_a_list_of_strings(value: object) -> None:
    with pytest.raises(CheckpointError, match=r"quantization_config: modules_to_not_convert is .*a list of strings"):
        bitnet(quantization_config=ONLINE | {"modules_to_not_convert": value})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("silu", "silu"),
        ("swish", "silu"),
        ("relu2", "relu2"),
        ("gelu", "gelu"),
        ("gelu_new", "gelu_tanh"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
    ],
)
def test_activations_by_their_names_in_transformers(name: str, expected: str) -> None:
    assert spec(hidden_act=name).activation == expected


def test_null_is_the_same_as_absent() -> None:
    nothing = dict.fromkeys(("num_key_value_heads", "head_dim", "rope_scaling", "rope_theta", "attention_bias"))
    assert spec(**nothing) == spec()


def test_every_field_is_read() -> None:
    found = spec(
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=100,
        rms_norm_eps=1e-4,
        hidden_act="swish",
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
        rope_theta=5e5,
    )
    assert (found.num_key_value_heads, found.head_dim, found.context_length) == (2, 32, 100)
    assert (found.norm_epsilon, found.activation) == (1e-4, "silu")
    assert found.attention_bias
    assert found.mlp_bias
    assert found.tie_word_embeddings
    assert (found.rotary.theta, found.rotary.dim) == (5e5, 32)
    assert (found.attention_size, found.key_value_size) == (128, 64)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0}, "rope_theta": 1e4},
        {"rope_theta": 5e5, "rope_factors": [4.0] * 8},
    ],
)
def test_old_and_new_ways_to_write_rotary_scaling(changes: dict[str, object]) -> None:
    rotary = spec(**changes).rotary
    assert (rotary.theta, rotary.dim, rotary.divisors) == (5e5, 16, (4.0,) * 8)


@pytest.mark.parametrize("changes", [{"rope_parameters": {}}, {"rope_parameters": {"rope_type": "default"}}])
def test_rope_parameters_without_scaling(changes: dict[str, object]) -> None:
    assert spec(**changes) == spec()


def llama3_divisor(index: int, dim: int, theta: float, rule: dict[str, float]) -> float:
    """The rule as the Llama 3.1 model card's code has it: three cases by wavelength."""
    frequency = theta ** (-2 * index / dim)
    wavelength = 2 * math.pi / frequency
    original = rule["original_max_position_embeddings"]
    if wavelength < original / rule["high_freq_factor"]:
        return 1.0
    if wavelength > original / rule["low_freq_factor"]:
        return rule["factor"]
    smooth = (original / wavelength - rule["low_freq_factor"]) / (rule["high_freq_factor"] - rule["low_freq_factor"])
    return frequency / ((1 - smooth) * frequency / rule["factor"] + smooth * frequency)


@pytest.mark.parametrize(
    ("theta", "head_dim", "rule"),
    [
        (5e5, 64, LLAMA3),
        (1e4, 16, LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 64}),
        (5e5, 128, LLAMA3 | {"low_freq_factor": 2.0, "high_freq_factor": 3.5}),
    ],
)
def test_llama3_divisors_equal_an_independent_formulation(theta: float, head_dim: int, rule: dict) -> None:
    divisors = spec(rope_theta=theta, head_dim=head_dim, rope_scaling=rule).rotary.divisors
    expected = [llama3_divisor(index, head_dim, theta, rule) for index in range(head_dim // 2)]
    assert divisors == pytest.approx(expected, rel=1e-12)
    assert len({round(value, 6) for value in divisors}) > 2


def test_llama3_divisors_equal_those_of_transformers() -> None:
    """Numbers of transformers 5.23: theta 500000, 64 rotated features, Llama 3.1's factors."""
    divisors = spec(rope_theta=5e5, head_dim=64, rope_scaling=LLAMA3).rotary.divisors
    assert divisors == pytest.approx(TRANSFORMERS_LLAMA3, abs=2e-5)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model_type": "absent"}, CheckpointError, "config.json: model_type is missing"),
        ({"model_type": 3}, CheckpointError, "model_type is 3: expected a string"),
        (
            {"model_type": "lama"},
            UnsupportedError,
            r"'lama' is not supported; did you mean 'llama'\? \(known: bitnet, llama\)",
        ),
        ({"model_type": "gpt_neo"}, UnsupportedError, r"'gpt_neo' is not supported \(known: bitnet, llama\)"),
        ({"quantization_config": {"quant_method": "gptq"}}, UnsupportedError, "quantization method 'gptq'"),
        ({"quantization_config": {}}, UnsupportedError, "quantization method 'unknown'"),
        ({"quantization_config": 4}, CheckpointError, "quantization_config is 4: expected an object"),
        ({"hidden_act": "gleu"}, UnsupportedError, r"hidden_act 'gleu' is not supported; did you mean 'gelu'\?"),
        ({"hidden_act": "mish"}, UnsupportedError, r"hidden_act 'mish' is not supported \(known: silu, relu2"),
        ({"hidden_size": "absent"}, CheckpointError, "config.json: hidden_size is missing"),
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
        ({"head_dim": 15}, CheckpointError, "rotary dim is 15"),
        ({"rms_norm_eps": 0}, CheckpointError, "rms_norm_eps is 0: expected a finite number greater than 0"),
        ({"rms_norm_eps": "1e-5"}, CheckpointError, "rms_norm_eps is '1e-5': expected a number"),
        ({"rms_norm_eps": float("inf")}, CheckpointError, "rms_norm_eps is inf"),
        ({"rms_norm_eps": 10**400}, CheckpointError, r"rms_norm_eps is 1000.*\.\.\.: expected a finite"),
        ({"tie_word_embeddings": 1}, CheckpointError, "tie_word_embeddings is 1: expected true or false"),
        ({"rope_theta": float("nan")}, CheckpointError, "rope_theta is nan"),
        ({"rope_scaling": "linear"}, CheckpointError, "rope_scaling is 'linear': expected an object"),
        ({"rope_scaling": {"type": "yarn", "factor": 2}}, UnsupportedError, "rope type 'yarn' is not supported; known"),
        ({"rope_scaling": {"type": "linear"}}, CheckpointError, "config.json: rope_scaling: factor is missing"),
        ({"rope_scaling": {"type": 7}}, CheckpointError, "rope_scaling: type is 7"),
        ({"rope_scaling": {"rope_type": "llama3"}}, CheckpointError, "rope_scaling: factor is missing"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, CheckpointError, "must exceed low_freq_factor 1.0"),
        ({"partial_rotary_factor": 0.5}, UnsupportedError, "partial_rotary_factor is not supported"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, UnsupportedError, "partial_rotary_factor"),
        ({"rope_factors": [1.0]}, CheckpointError, "1 rope factors: expected 8"),
        ({"rope_factors": [1.0] * 7 + [0]}, CheckpointError, "rope_factors: 7 is 0"),
        ({"rope_factors": 3}, CheckpointError, "rope_factors is 3: expected a list of numbers"),
    ],
)
def test_refusals_name_the_field(changes: dict[str, object], error: type[InputError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        spec(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", TINY)
def test_the_specification_names_every_tensor_of_a_checkpoint(name: str) -> None:
    model = TINY[name]
    config = Config(model.config)
    family = find(config)
    wanted = {family.tensor_name(role): shape for role, shape in family.spec(config).tensors()}
    assert wanted == {key: value.shape for key, value in tensors(model).items()}


def test_families_are_known_by_their_model_type() -> None:
    assert all(family.model_type == name for name, family in FAMILIES.items())
