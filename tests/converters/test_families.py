"""`config.json` -> `DecoderSpec`, and the names of tensors."""

from __future__ import annotations

from dataclasses import replace

import pytest
from family_models import FAMILY_MODELS, shapes_of
from family_specs import read, spec
from tiny_models import TINY, tensors

from bitnet_onnx.converters.families import FAMILIES, Config, find
from bitnet_onnx.converters.families._family import Rows
from bitnet_onnx.decoder import Attention, DecoderSpec, NormPlacement, QueryKeyNorm, Rotary


def bitnet(**changes: object) -> DecoderSpec:
    return spec(model_type="bitnet", **changes)


#: What transformers 5.23 has where config.json says nothing but the family; `parity_families.py` compares them too.
LLAMA = DecoderSpec(
    family="llama",
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    head_dim=128,
    context_length=2048,
    norm_epsilon=1e-6,
    activation="silu",
    attention=(Attention(Rotary(10000.0, 128)),),
)
QWEN2 = replace(LLAMA, family="qwen2", vocab_size=151936, intermediate_size=22016, context_length=32768, qkv_bias=True)
SMOLLM3 = replace(
    LLAMA,
    family="smollm3",
    vocab_size=128256,
    hidden_size=2048,
    num_hidden_layers=36,
    num_attention_heads=16,
    num_key_value_heads=4,
    context_length=32768,
    attention=(*(Attention(Rotary(2e6, 128)),) * 3, Attention(None)) * 9,
    tie_word_embeddings=True,
)
DEFAULTS = {
    "bitnet": replace(
        LLAMA,
        family="bitnet",
        vocab_size=128256,
        hidden_size=2560,
        intermediate_size=6912,
        num_hidden_layers=30,
        num_attention_heads=20,
        num_key_value_heads=5,
        norm_epsilon=1e-5,
        activation="relu2",
        attention=(Attention(Rotary(5e5, 128)),),
        attention_sub_norm=True,
        mlp_sub_norm=True,
    ),
    "granite": replace(LLAMA, family="granite", attention_scale=1.0),
    "llama": LLAMA,
    "mistral": replace(
        LLAMA,
        family="mistral",
        intermediate_size=14336,
        num_key_value_heads=8,
        context_length=131072,
        attention=(Attention(Rotary(10000.0, 128), 4096),),
    ),
    "olmo2": replace(
        LLAMA,
        family="olmo2",
        vocab_size=50304,
        norm_epsilon=1e-5,
        placement=NormPlacement.OUTPUT,
        query_key_norm=QueryKeyNorm.ALL,
    ),
    "phi3": replace(
        LLAMA,
        family="phi3",
        vocab_size=32064,
        hidden_size=3072,
        intermediate_size=8192,
        head_dim=96,
        context_length=4096,
        norm_epsilon=1e-5,
        attention=(Attention(Rotary(10000.0, 96)),),
    ),
    "qwen2": QWEN2,
    "qwen3": replace(QWEN2, family="qwen3", qkv_bias=False, query_key_norm=QueryKeyNorm.HEAD),
    "smollm3": SMOLLM3,
}


@pytest.mark.parametrize("family", DEFAULTS)
def test_defaults_are_those_of_transformers(family: str) -> None:
    assert read({"model_type": family}) == DEFAULTS[family]


def test_bitnet_is_llama_with_defaults_of_its_own_and_sub_norms() -> None:
    assert bitnet() == replace(
        spec(hidden_act="relu2", rms_norm_eps=1e-5, rope_theta=5e5),
        family="bitnet",
        attention_sub_norm=True,
        mlp_sub_norm=True,
    )
    assert bitnet(hidden_act=None, rope_theta=None, rope_parameters={"rope_type": "default"}) == bitnet()
    found = bitnet(hidden_act="silu", rms_norm_eps=1e-6, rope_parameters={"rope_theta": 1e4}, attention_bias=True)
    assert (found.activation, found.norm_epsilon) == ("silu", 1e-6)
    assert found.attention[0].rotary == Rotary(1e4, 16)
    assert found.qkv_bias
    assert found.output_bias


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("silu", "silu"),
        ("swish", "silu"),
        ("relu", "relu"),
        ("relu2", "relu2"),
        ("gelu", "gelu"),
        ("gelu_new", "gelu_tanh"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
        ("quick_gelu", "quick_gelu"),
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
        pretraining_tp=4,
    )
    assert (found.num_key_value_heads, found.head_dim, found.context_length) == (2, 32, 100)
    assert (found.norm_epsilon, found.activation) == (1e-4, "silu")
    assert found.qkv_bias
    assert found.output_bias
    assert found.mlp_bias
    assert found.tie_word_embeddings
    assert found.attention == (Attention(Rotary(5e5, 32)),)
    assert (found.attention_size, found.key_value_size) == (128, 64)


def test_falcon3_1_58bit_is_a_llama() -> None:
    """The configuration of Falcon3-1B-Instruct-1.58bit."""
    found = read(
        {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "head_dim": 256,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "is_bitnet_config": True,
            "max_position_embeddings": 8192,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": 8,
            "num_hidden_layers": 18,
            "num_key_value_heads": 4,
            "pretraining_tp": 1,
            "quantization_config": {"modules_to_not_convert": None, "quant_method": "bitnet"},
            "rms_norm_eps": 1e-6,
            "rope_scaling": None,
            "rope_theta": 1000042,
            "tie_word_embeddings": False,
            "vocab_size": 131072,
        }
    )
    assert (found.attention_size, found.key_value_size, found.context_length) == (2048, 1024, 8192)
    assert found.attention == (Attention(Rotary(1000042.0, 256)),)


WINDOW = {"use_sliding_window": True, "sliding_window": 64}


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"model_type": "mistral", "sliding_window": 64}, [64, 64, 64, 64]),
        ({"model_type": "mistral", "sliding_window": None}, [0, 0, 0, 0]),
        ({"model_type": "phi3", "sliding_window": 64}, [64, 64, 64, 64]),
        ({"model_type": "qwen2", **WINDOW}, [0, 0, 0, 0]),
        ({"model_type": "qwen2", **WINDOW, "max_window_layers": 0}, [64, 64, 64, 64]),
        ({"model_type": "qwen2", **WINDOW, "max_window_layers": 3}, [0, 0, 0, 64]),
        ({"model_type": "qwen2", **WINDOW, "max_window_layers": 3, "use_sliding_window": False}, [0, 0, 0, 0]),
        ({"model_type": "qwen2", **WINDOW, "max_window_layers": 0, "sliding_window": None}, [0, 0, 0, 0]),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 0}, [4096] * 4),
        (
            {"model_type": "qwen3", **WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2},
            [64, 0, 64, 0],
        ),
        ({"model_type": "smollm3", **WINDOW}, [0, 0, 0, 64]),
        ({"model_type": "smollm3", **WINDOW, "no_rope_layer_interval": 2}, [0, 64, 0, 64]),
        ({"model_type": "smollm3", **WINDOW, "layer_types": ["full_attention"] * 4}, [0, 0, 0, 0]),
    ],
)
def test_windows_by_layer(changes: dict[str, object], windows: list[int]) -> None:
    found = spec(num_hidden_layers=4, **changes)
    assert [found.layer(index).window for index in range(4)] == windows


@pytest.mark.parametrize(
    ("changes", "rotated"),
    [
        ({}, [True, True, True, False]),
        ({"no_rope_layer_interval": 2}, [True, False, True, False]),
        ({"no_rope_layer_interval": 1}, [False] * 4),
        ({"no_rope_layers": [0, 1, 1, 1, 0], "no_rope_layer_interval": 2}, [False, True, True, True]),
        ({"no_rope_layers": [1, 1, 1, 1]}, [True] * 4),
    ],
)
def test_layers_without_positions(changes: dict[str, object], rotated: list[bool]) -> None:
    found = spec(model_type="smollm3", num_hidden_layers=4, **changes)
    assert [found.layer(index).rotary is not None for index in range(4)] == rotated


def test_granite_divides_logits() -> None:
    found = spec(
        model_type="granite",
        embedding_multiplier=12,
        attention_multiplier=0.015625,
        residual_multiplier=0.22,
        logits_scaling=8.0,
    )
    assert (found.embedding_scale, found.attention_scale, found.residual_scale) == (12, 0.015625, 0.22)
    assert found.logit_scale == 0.125


@pytest.mark.parametrize("family", ["mistral", "qwen2", "phi3", "olmo2"])
def test_biases_that_a_family_does_not_have(family: str) -> None:
    """transformers does not read the field in these families; a tensor that has no place is refused later."""
    found = spec(model_type=family, mlp_bias=True)
    assert not found.mlp_bias


@pytest.mark.parametrize("name", TINY)
def test_the_specification_names_every_tensor_of_a_checkpoint(name: str) -> None:
    model = TINY[name]
    config = Config(model.config)
    family = find(config)
    found = family.spec(config)
    wanted = {family.source(found, role).name: shape for role, shape in found.tensors()}
    assert wanted == {key: value.shape for key, value in tensors(model).items()}


@pytest.mark.parametrize(
    "name", [name for name, model in FAMILY_MODELS.items() if str(model.config["model_type"]) in DEFAULTS]
)
def test_every_row_of_every_tensor_of_transformers_has_one_role(name: str) -> None:
    config = Config(FAMILY_MODELS[name].config)
    family = find(config)
    found = family.spec(config)
    rows: dict[str, list[int]] = {}
    for role, shape in found.tensors():
        source = family.source(found, role)
        part = source.rows or Rows(0, shape[0], shape[0])
        starts = [part.start + block * part.stride for block in range(part.count)]
        rows.setdefault(source.name, []).extend(row for start in starts for row in range(start, start + part.block))
    assert {key: sorted(numbers) for key, numbers in rows.items()} == {
        key: list(range(shape[0])) for key, shape in shapes_of(name).items()
    }


@pytest.mark.parametrize(
    ("family", "role", "name"),
    [
        ("bitnet", "layers.3.attn.sub_norm.weight", "model.layers.3.self_attn.attn_sub_norm.weight"),
        ("bitnet", "layers.3.mlp.sub_norm.weight", "model.layers.3.mlp.ffn_sub_norm.weight"),
        ("bitnet", "layers.3.attn.o_proj.weight", "model.layers.3.self_attn.o_proj.weight"),
        ("llama", "layers.3.post_attention_norm.weight", "model.layers.3.post_attention_layernorm.weight"),
        ("olmo2", "layers.3.attn.output_norm.weight", "model.layers.3.post_attention_layernorm.weight"),
        ("olmo2", "layers.3.mlp.output_norm.weight", "model.layers.3.post_feedforward_layernorm.weight"),
        ("qwen3", "layers.3.attn.key_norm.weight", "model.layers.3.self_attn.k_norm.weight"),
        ("phi3", "layers.3.attn.v_proj.weight", "model.layers.3.self_attn.qkv_proj.weight"),
        ("phi3", "layers.3.mlp.up_proj.weight", "model.layers.3.mlp.gate_up_proj.weight"),
        ("phi3", "norm.weight", "model.norm.weight"),
        ("phi3", "lm_head.weight", "lm_head.weight"),
    ],
)
def test_names_of_tensors(family: str, role: str, name: str) -> None:
    assert FAMILIES[family].source(DEFAULTS[family], role).name == name


def test_families_are_known_by_their_model_type() -> None:
    assert all(family.model_type == name for name, family in FAMILIES.items())
