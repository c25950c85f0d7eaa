"""What a training run starts from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from bitnet_models import CASES, write
from exports import CHOSEN, write_source
from tiny_models import TINY, tokenizer, write_checkpoint
from training_starts import LLAMA, filled, random_start, trained_tokenizer

from bitnet_onnx.converters import FloatType, GgufOptions, convert, export
from bitnet_onnx.converters.model import open_model
from bitnet_onnx.errors import BitnetOnnxError, CheckpointError, InputError, UnsupportedError
from bitnet_onnx.policy import Policy, Precision, Weights
from bitnet_onnx.ternary import detect, quantize_absmean
from bitnet_onnx.training._random_start import token_ids
from bitnet_onnx.training.settings import BlockWeights, ModelSettings
from bitnet_onnx.training.start import open_start


@pytest.mark.parametrize("name", CHOSEN)
def test_a_checkpoint_of_any_family(name: str, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", name)
    with open_start(ModelSettings(str(source))) as start, open_model(source) as model:
        assert start.spec == model.spec
        assert start.config == json.loads((source / "config.json").read_text())
        assert start.tokenizer["tokenizer.json"] == (source / "tokenizer.json").read_bytes()
        assert start.size == sum(math.prod(shape) for _, shape in model.spec.tensors())
        assert start.decayed == {role for role, shape in model.spec.tensors() if len(shape) == 2}
        store = filled(start)
        for role, _ in model.spec.tensors():
            np.testing.assert_array_equal(store.value(role), model.tensors.read(role), role)
            np.testing.assert_array_equal(start.read(role), model.tensors.read(role), role)


def test_a_gguf_and_a_package(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "untied_gqa")
    export(source, tmp_path / "model.gguf", GgufOptions(dtype=FloatType.FLOAT32))
    convert(tmp_path / "model.gguf", tmp_path / "package", policy=Policy(Precision(Weights.INT4)))
    for path in (tmp_path / "model.gguf", tmp_path / "package"):
        with open_start(ModelSettings(str(path))) as start, open_model(path) as model:
            store = filled(start)
            for role, _ in model.spec.tensors():
                np.testing.assert_array_equal(store.value(role), model.tensors.read(role), role)


@pytest.mark.parametrize("case", ["bitnet_divides", "llama_multiplies", "llama_multiplies_dense"])
def test_ternary_matrices_are_lifted_to_masters_that_round_to_them(case: str, tmp_path: Path) -> None:
    source = write(tmp_path / "source", CASES[case]())
    with open_start(ModelSettings(str(source))) as start, open_model(source) as model:
        assert "quantization_config" not in start.config
        store = filled(start)
        for role, _ in model.spec.matrices():
            floats = start.read(f"{role}.weight")
            np.testing.assert_array_equal(floats, model.tensors.read(f"{role}.weight"))
            if not role.startswith("layers."):
                np.testing.assert_array_equal(store.value(f"{role}.weight"), floats)
                continue
            exact, found = detect(floats), quantize_absmean(store.value(f"{role}.weight"))
            assert exact is not None
            np.testing.assert_array_equal(found.raw, exact.raw)
            np.testing.assert_allclose(found.scale, exact.scale, rtol=3e-7)
            # Without the lift it would be another model.
            assert quantize_absmean(floats).scale < 0.9 * exact.scale
    with (
        open_start(ModelSettings(str(source), weights=BlockWeights.FLOAT))
        if "dense" not in case
        else open_start(ModelSettings(str(source))) as start
    ):
        assert start.ternary is ("dense" in case)


def test_masters_stay_what_they_are(tmp_path: Path) -> None:
    source = write(tmp_path / "source", CASES["bitnet_online"]())
    with open_start(ModelSettings(str(source))) as start, open_model(source) as model:
        assert "quantization_config" not in start.config
        store = filled(start)
        for role, _ in model.spec.tensors():
            np.testing.assert_array_equal(store.value(role), model.tensors.read(role))


def test_the_first_reproduction_becomes_the_bitnet_of_transformers(tmp_path: Path) -> None:
    source = write(tmp_path / "source", CASES["bitnet_original"]())
    with open_start(ModelSettings(str(source))) as start, open_model(source) as model:
        assert start.config["model_type"] == "bitnet"
        assert start.config["architectures"] == ["BitNetForCausalLM"]
        assert start.spec == model.spec
        for role, _ in model.spec.tensors():
            np.testing.assert_array_equal(start.read(role), model.tensors.read(role))


#: Decoders that are a Llama at heart; the fused matrices of Phi-3 come apart.
LLAMAS = ["untied_gqa", "tied_mha", "llama_linear", "llama_yarn_options", "llama_dynamic", "llama_longrope"]
LLAMAS += ["llama_parameters", "phi3", "phi3_long"]


@pytest.mark.parametrize("name", LLAMAS)
def test_sub_norms_put_in(name: str, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", name)
    with open_start(ModelSettings(str(source), sub_norms=True)) as start, open_model(source) as model:
        assert start.config["model_type"] == start.spec.family == "bitnet"
        assert start.spec.attention_sub_norm
        assert start.spec.mlp_sub_norm
        assert start.spec.attention == model.spec.attention
        assert start.config["eos_token_id"] == model.config.get("eos_token_id")
        added = {role for role, _ in start.spec.tensors()} - {role for role, _ in model.spec.tensors()}
        assert added == {
            f"layers.{index}.{part}.sub_norm.weight"
            for index in range(model.spec.num_hidden_layers)
            for part in ("attn", "mlp")
        }
        store = filled(start)
        for role, _ in start.spec.tensors():
            np.testing.assert_array_equal(store.value(role), 1 if role in added else model.tensors.read(role))


def test_sub_norms_that_are_there_already(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", TINY["bitnet"])
    with open_start(ModelSettings(str(source), sub_norms=True)) as start, open_model(source) as model:
        assert start.spec == model.spec
        for role, _ in model.spec.tensors():
            np.testing.assert_array_equal(start.read(role), model.tensors.read(role))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("biased_mqa", "mlp_bias is True: .* has False"),
        ("gpt2", "norm is layer: .* has rms"),
        ("gemma2", "placement is both"),
        ("qwen2_layer_types", "output_bias is False: .* has True"),
        ("qwen3_default_heads", "query_key_norm is head: .* has none"),
        ("olmo2", "placement is output: .* has input"),
    ],
)
def test_sub_norms_where_transformers_has_none(name: str, reason: str, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", name)
    with (
        pytest.raises(UnsupportedError, match=f"(?:{reason}).*leave model.sub_norms out") as raised,
        open_start(ModelSettings(str(source), sub_norms=True)),
    ):
        pass
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 32}, "head_dim is 32: .* heads that are hidden_size = 64 together"),
        ({"model_type": "mistral", "sliding_window": 16}, "layers attend with a window of 16"),
        (
            {"model_type": "granite", "residual_multiplier": 0.5, "attention_multiplier": 0.25},
            "residual_scale is 0.5: .* has 1.0",
        ),
        ({"model_type": "smollm3", "no_rope_layers": [1, 0, 1]}, "no rotary embedding in some of them"),
        ({"model_type": "phi3", "partial_rotary_factor": 0.5}, "rotation of 8 of 16 features"),
    ],
)
def test_what_a_bitnet_has_no_place_for(changes: Mapping[str, object], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        random_start({**LLAMA, **changes}, sub_norms=True)
    assert random_start({**LLAMA, **changes}).spec.family == changes.get("model_type", "llama")


def test_a_norm_inside_each_linear_layer_needs_ternary_weights(tmp_path: Path) -> None:
    source = write(tmp_path / "source", CASES["llama_online_norms"]())
    with open_start(ModelSettings(str(source))) as start:
        assert start.spec.linear_norm_epsilon is not None
    with (
        pytest.raises(UnsupportedError, match="norm stands inside each linear layer"),
        open_start(ModelSettings(str(source), weights=BlockWeights.FLOAT)),
    ):
        pass


def test_a_random_start() -> None:
    start = random_start()
    store = filled(start)
    assert start.name == "random llama"
    for role, shape in start.spec.tensors():
        value = store.value(role)
        if len(shape) == 1:
            np.testing.assert_array_equal(value, 1)
            continue
        deviation = 0.02 / math.sqrt(6) if role.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
        assert value.std() == pytest.approx(deviation, rel=0.05)
        assert abs(value.mean()) < 4 * deviation / math.sqrt(value.size)
    assert (start.config["bos_token_id"], start.config["eos_token_id"]) == (1, 2)
    assert "pad_token_id" not in start.config
    assert start.generation_config == {"bos_token_id": 1, "eos_token_id": 2}


def test_a_random_start_follows_from_seed_and_name_alone() -> None:
    one, again, other = filled(random_start()), filled(random_start()), filled(random_start(seed=1))
    np.testing.assert_array_equal(one.values, again.values)
    deeper = random_start(dict(LLAMA) | {"num_hidden_layers": 12, "tie_word_embeddings": True})
    for role in one:
        if one.value(role).ndim == 2:
            assert not np.array_equal(one.value(role), other.value(role))
    q_proj = "layers.1.attn.q_proj.weight"
    np.testing.assert_array_equal(deeper.read(q_proj), one.value(q_proj))
    o_proj = "layers.1.attn.o_proj.weight"
    np.testing.assert_allclose(2 * deeper.read(o_proj), one.value(o_proj), rtol=1e-6)
    wider = random_start(dict(LLAMA) | {"initializer_range": 0.04})
    np.testing.assert_allclose(wider.read(q_proj), 2 * one.value(q_proj), rtol=1e-6)


def test_biases_and_positions_of_a_random_start() -> None:
    start = random_start(
        {"model_type": "gpt2", "vocab_size": 300, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
    )
    for role, shape in start.spec.tensors():
        if role.endswith(".bias"):
            np.testing.assert_array_equal(start.read(role), np.zeros(shape))
    assert start.read("embed_positions.weight").std() == pytest.approx(0.02, rel=0.1)


def test_sub_norms_of_a_random_start() -> None:
    start, plain = random_start(sub_norms=True), random_start()
    assert start.spec.family == "bitnet"
    np.testing.assert_array_equal(start.read("layers.2.mlp.sub_norm.weight"), np.ones(96))
    np.testing.assert_array_equal(start.read("layers.2.mlp.up_proj.weight"), plain.read("layers.2.mlp.up_proj.weight"))
    assert start.config["eos_token_id"] == 2
    assert start.config["rope_theta"] == 10000.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": None}, "model.architecture.model_type is missing"),
        ({"vocab_size": None}, "model.architecture.vocab_size is missing"),
        ({"model_type": "lama"}, "did you mean 'llama'"),
        ({"num_hidden_layer": 2}, "model.architecture.num_hidden_layer: no llama model has this field"),
        ({"n_embd": 64}, "model.architecture.n_embd: no llama model"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers is '2'"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3"),
        ({"num_hidden_layers": 10**6}, "the limit is 10000"),
        ({"hidden_act": "tanh"}, "hidden_act 'tanh' is not supported"),
        ({"quantization_config": {"quant_method": "bitnet"}}, "model.weights says"),
        ({"sliding_window": 16}, "sliding_window is 16"),
        ({"eos_token_id": 300}, "eos_token_id is 300"),
        ({"bos_token_id": [1]}, "bos_token_id"),
        ({"initializer_range": 0}, "initializer_range is 0"),
        ({"initializer_range": math.inf}, "initializer_range is inf"),
        ({"architectures": "Llama"}, "architectures is 'Llama'"),
    ],
)
def test_architectures_that_are_refused(changes: Mapping[str, object], message: str) -> None:
    fields = {name: value for name, value in {**LLAMA, **changes}.items() if value is not None}
    with pytest.raises(InputError, match=message) as raised:
        random_start(fields)
    assert "\n" not in str(raised.value)


def test_fields_that_do_something_are_known() -> None:
    fields = dict(LLAMA) | {
        "architectures": ["LlamaForCausalLM"],
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "head_dim": 16,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "eos_token_id": 7,
    }
    start = random_start(fields)
    assert start.config == {**fields, "bos_token_id": 1}
    assert start.generation_config == {"bos_token_id": 1, "eos_token_id": 7}


def test_a_tokenizer_that_is_given(tmp_path: Path) -> None:
    tokenizer(290).save(str(tmp_path / "mine.json"))
    (tmp_path / "folder").mkdir()
    tokenizer(300).save(str(tmp_path / "folder" / "tokenizer.json"))
    (tmp_path / "folder" / "chat_template.jinja").write_text("{{ messages }}")
    with open_start(ModelSettings(architecture=LLAMA, tokenizer=tmp_path / "mine.json")) as start:
        assert start.tokenizer == {"tokenizer.json": (tmp_path / "mine.json").read_bytes()}
    with open_start(ModelSettings(architecture=LLAMA, tokenizer=tmp_path / "folder")) as start:
        assert set(start.tokenizer) == {"tokenizer.json", "chat_template.jinja"}
    tokenizer(301).save(str(tmp_path / "large.json"))
    for path, message in (
        (tmp_path / "large.json", "has id 300, but the model has 300 rows"),
        (tmp_path / "none.json", "there is no such file"),
    ):
        with (
            pytest.raises(InputError, match=message),
            open_start(ModelSettings(architecture=LLAMA, tokenizer=path)),
        ):
            pass


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (ModelSettings(), InputError, "give either source"),
        (ModelSettings("x", architecture=LLAMA), InputError, "give either source"),
        (ModelSettings("x", tokenizer=Path("t.json")), InputError, "model.tokenizer is for a random start"),
        (ModelSettings(architecture=LLAMA), InputError, "model.tokenizer is missing"),
        (ModelSettings("no-such-model"), BitnetOnnxError, "neither an existing path nor a model of the zoo"),
    ],
)
def test_settings_that_contradict_themselves(
    settings: ModelSettings, error: type[BitnetOnnxError], message: str
) -> None:
    with pytest.raises(error, match=message), open_start(settings):
        pass


def test_tokens_that_a_tokenizer_names() -> None:
    files = dict(trained_tokenizer([], 300))
    assert token_ids(files) == {"bos_token_id": 1, "eos_token_id": 2}
    described = {"bos_token": None, "eos_token": {"content": "<unk>", "lstrip": False}, "pad_token": "<other>"}
    assert token_ids(files | {"tokenizer_config.json": json.dumps(described).encode()}) == {"eos_token_id": 0}
    assert token_ids({"tokenizer.json": files["tokenizer.json"]}) == {}


def test_a_negative_seed() -> None:
    with pytest.raises(InputError, match="seed is -1"):
        random_start(seed=-1)


def test_a_broken_checkpoint_is_refused_as_convert_refuses_it(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", TINY["tied_mha"])
    (source / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(CheckpointError), open_start(ModelSettings(str(source))):
        pass
