"""BitNet checkpoints in every stored form: matrices, scales and biases as the reference has them."""

from __future__ import annotations

import json
import logging
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bitnet_models import (
    CASES,
    DIVIDES,
    FALCON,
    MULTIPLIES,
    Packed,
    bfloat16,
    masters,
    original,
    pack,
    packed,
    stored,
    write,
    write_tensors,
)
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import TINY, TinyModel

from bitnet_onnx.converters.checkpoints import Checkpoint, open_checkpoint
from bitnet_onnx.converters.checkpoints import _bitnet_packed as module
from bitnet_onnx.converters.model import open_model
from bitnet_onnx.errors import CheckpointError
from bitnet_onnx.quantized import TERNARY
from bitnet_onnx.ternary import quantize_absmean

GOLDEN = Path(__file__).parents[2] / "golden"
Q = "model.layers.0.self_attn.q_proj.weight"

Opened = Callable[[Path], Checkpoint]


def role(name: str) -> str:
    return name.removeprefix("model.").removesuffix(".weight").replace(".self_attn.", ".attn.")


@pytest.mark.parametrize("case", CASES)
def test_codes_and_scales_are_those_of_the_reference(case: str, tmp_path: Path) -> None:
    source = write(tmp_path, CASES[case]())
    with np.load(GOLDEN / f"bitnet_packed_{case}.npz") as golden, open_model(source) as model:
        names = [key.removeprefix("codes.") for key in golden if key.startswith("codes.")]
        assert len(names) == 14
        assert model.trained_ternary
        for name in names:
            found = model.tensors.quantized(role(name))
            if case == "bitnet_original":  # floats, of which nothing but the architecture says what they are
                assert found is None
                found = quantize_absmean(model.tensors.read(f"{role(name)}.weight"))
            assert found is not None
            assert found.grid == TERNARY
            np.testing.assert_array_equal(found.signed(), golden[f"codes.{name}"])
            # Masters: the order of the mean's sum. Otherwise the stored number itself.
            rtol = 1e-6 if case.endswith(("online", "online_norms", "original")) else 0
            np.testing.assert_allclose(found.scale, golden[f"scale.{name}"][None], rtol=rtol, atol=0)


@pytest.mark.parametrize("case", ["bitnet_divides", "bitnet_multiplies", "llama_multiplies_dense"])
def test_a_packed_matrix_looks_like_any_other(opened: Opened, case: str, tmp_path: Path) -> None:
    content = CASES[case]()
    checkpoint = opened(write(tmp_path, content))
    assert not [name for name in checkpoint.tensors if name.endswith("weight_scale")]
    for name, codes in content.codes.items():
        info = checkpoint.tensors[name]
        assert (info.name, info.shape, info.dtype, info.file) == (name, codes.shape, "BITNET", "model.safetensors")
        assert info.nbytes == len(content.stored[name].data) + 2
        values = codes.astype(np.float32) * content.scales[name]
        np.testing.assert_array_equal(checkpoint.read(name), values)
        rows = len(codes)
        for start, stop in ((0, 1), (rows // 4 - 1, rows // 4 + 1), (5, rows - 5), (3, 3), (rows - 1, rows)):
            np.testing.assert_array_equal(checkpoint.read_rows(name, start, stop), values[start:stop])
    with pytest.raises(CheckpointError, match=r"has no rows 0\.\.65"):
        checkpoint.read_rows(Q, 0, 65)
    assert checkpoint.read_quantized("model.norm.weight") is None
    assert checkpoint.tensors["model.norm.weight"].dtype == "BF16"


def test_the_sense_comes_from_the_linear_class_alone(opened: Opened, tmp_path: Path) -> None:
    content = packed(TINY["bitnet"], DIVIDES)
    scale = opened(write(tmp_path / "divides", content)).read(Q).max()
    content.config["quantization_config"] = MULTIPLIES
    flipped = opened(write(tmp_path / "multiplies", content)).read(Q).max()
    assert scale == np.float32(1) / flipped


def test_a_bias_stands_where_the_scale_has_reached_it(opened: Opened, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.down_proj"
    for quantization, scaled in ((DIVIDES, False), (MULTIPLIES, True)):
        content = packed(FALCON, quantization)
        checkpoint = opened(write(tmp_path / str(scaled), content))
        bits = np.frombuffer(content.stored[f"{name}.bias"].data, "<u2").astype("<u4") << 16
        expected = bits.view("<f4") * (content.scales[f"{name}.weight"] if scaled else np.float32(1))
        np.testing.assert_array_equal(checkpoint.read(f"{name}.bias"), expected)


@given(
    quarter=st.integers(1, 5),
    columns=st.integers(1, 9),
    chunk=st.integers(1, 30),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_unpacking_in_pieces(
    tmp_path_factory: pytest.TempPathFactory, quarter: int, columns: int, chunk: int, seed: int, data: st.DataObject
) -> None:
    codes = np.random.default_rng(seed).integers(-1, 2, (4 * quarter, columns)).astype(np.int8)
    content = {"x.weight": stored(pack(codes), "U8"), "x.weight_scale": stored(np.array(0.5), "F32")}
    path = write(
        tmp_path_factory.mktemp("packed"), Packed({"vocab_size": 300, "quantization_config": MULTIPLIES}, content)
    )
    start = data.draw(st.integers(0, 4 * quarter))
    stop = data.draw(st.integers(start, 4 * quarter))
    with pytest.MonkeyPatch.context() as patch, open_checkpoint(path) as checkpoint:
        patch.setattr(module, "_CHUNK", chunk)
        found = checkpoint.read_quantized("x.weight")
        assert found is not None
        np.testing.assert_array_equal(found.signed(), codes)
        np.testing.assert_array_equal(checkpoint.read("x.weight"), codes * np.float32(0.5))
        np.testing.assert_array_equal(
            checkpoint.read_rows("x.weight", start, stop), codes[start:stop] * np.float32(0.5)
        )


def test_memory_is_that_of_the_result(opened: Opened, tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(-1, 2, (4096, 2048)).astype(np.int8)
    content = {"x.weight": stored(pack(codes), "U8"), "x.weight_scale": stored(np.array([2.0]), "F16")}
    checkpoint = opened(write(tmp_path, Packed({"vocab_size": 300, "quantization_config": DIVIDES}, content)))
    tracemalloc.start()
    try:
        found = checkpoint.read_quantized("x.weight")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found is not None
    np.testing.assert_array_equal(found.signed(), codes)
    assert peak < codes.size + 8 * module._CHUNK


def test_declared_masters_are_rounded_even_where_they_are_ternary(tmp_path: Path) -> None:
    """As `WeightQuant` does in every forward; the mean magnitude of -a, 0, a is not a."""
    content = CASES["bitnet_online"]()
    codes = content.codes[Q]
    content.stored[Q] = stored(codes * np.float32(0.25))
    with open_model(write(tmp_path, content)) as model:
        found = model.tensors.quantized(role(Q))
        assert found is not None
        np.testing.assert_array_equal(found.signed(), codes)
        np.testing.assert_allclose(found.scale, 0.25 * np.abs(codes).mean(dtype=np.float64), rtol=1e-6)


@pytest.mark.parametrize("quantization", [None, {"is_bitnet_config": True}])
def test_masters_that_nobody_declared_are_floats(quantization: dict[str, object] | None, tmp_path: Path) -> None:
    model = TINY["bitnet"] if quantization is None else FALCON
    with open_model(write(tmp_path, masters(model, None))) as opened:
        assert opened.tensors.is_master(role(Q))
        assert opened.tensors.quantized(role(Q)) is None


def test_norms_inside_linear_layers(tmp_path: Path) -> None:
    content = CASES["llama_divides_norms"]()
    with open_model(write(tmp_path, content)) as model:
        assert model.spec.linear_norm_epsilon == 1e-5
        found = model.tensors.read("layers.1.mlp.down_proj.norm.weight")
        name = "model.layers.1.mlp.down_proj.rms_norm.weight"
        np.testing.assert_array_equal(stored(found).data, content.stored[name].data)
    content.stored.pop(name)
    with (
        pytest.raises(CheckpointError, match=r"'model.layers.1.mlp.down_proj.rms_norm.weight' is missing"),
        open_model(write(tmp_path, content)),
    ):
        pass


def test_the_first_reproduction(tmp_path: Path) -> None:
    """1bitLLM: dense masters, names of its own, and a configuration that calls itself llama."""
    content = original()
    assert (content.config["model_type"], content.config["architectures"]) == ("llama", ["BitnetForCausalLM"])
    content.config.pop("hidden_act")
    content.stored["model.layers.0.self_attn.rotary_emb.inv_freq"] = stored(np.ones(8))
    with open_model(write(tmp_path, content)) as model:
        assert (model.spec.family, model.spec.activation) == ("bitnet", "silu")
        assert model.spec.attention_sub_norm
        assert model.spec.mlp_sub_norm
        assert model.trained_ternary
        for name, theirs in (("attn", "self_attn.inner_attn_ln"), ("mlp", "mlp.ffn_layernorm")):
            found = stored(model.tensors.read(f"layers.1.{name}.sub_norm.weight"))
            assert found == content.stored[f"model.layers.1.{theirs}.weight"]
        weight = model.tensors.read(f"{role(Q)}.weight")
        np.testing.assert_array_equal(quantize_absmean(weight).signed(), content.codes[Q])


def test_the_published_configuration(opened: Opened, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """That of microsoft/bitnet-b1.58-2B-4T with smaller sizes; the code that it names is never run."""
    config = {
        "architectures": ["BitNetForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_bitnet.BitNetConfig",
            "AutoModelForCausalLM": "modeling_bitnet.BitNetForCausalLM",
        },
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "relu2",
        "hidden_size": 64,
        "initializer_range": 0.02,
        "intermediate_size": 172,
        "max_position_embeddings": 4096,
        "model_type": "bitnet",
        "rms_norm_eps": 1e-05,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": 515,
    }
    content = packed(TinyModel(4, config), MULTIPLIES)
    source = write(tmp_path, content)
    ran = tmp_path / "ran"
    for name in ("configuration_bitnet.py", "modeling_bitnet.py"):
        (source / name).write_text(f"open({str(ran)!r}, 'w').close()\n")
    with caplog.at_level(logging.INFO), open_model(source) as model:
        assert (model.spec.family, model.spec.activation, model.spec.norm_epsilon) == ("bitnet", "relu2", 1e-5)
        assert model.spec.layer(0).rotary is not None
        assert model.spec.layer(0).rotary.theta == 500000.0
        assert model.spec.context_length == 4096
    assert not ran.exists()
    assert "auto_map names code for this checkpoint; it is never run" in caplog.text


def test_a_head_that_is_packed_too(opened: Opened, tmp_path: Path) -> None:
    content = packed(FALCON, {**DIVIDES, "modules_to_not_convert": []})
    codes = np.random.default_rng(0).integers(-1, 2, (516, 64)).astype(np.int8)
    content.config["vocab_size"] = 516
    content.stored.update({name: stored(codes) for name in ("model.embed_tokens.weight", "lm_head.weight")})
    with (
        pytest.raises(CheckpointError, match=r"'lm_head\.weight' is BF16 without a weight_scale"),
        open_model(write(tmp_path, content)),
    ):
        pass
    content.stored["lm_head.weight"] = stored(pack(codes), "U8")
    content.stored["lm_head.weight_scale"] = stored(bfloat16(np.array([4.0], np.float32)))
    with open_model(write(tmp_path, content)) as model:
        found = model.tensors.quantized("lm_head")
        assert found is not None
        np.testing.assert_array_equal(found.dequantize(), codes * np.float32(0.25))


def test_shards(opened: Opened, tmp_path: Path) -> None:
    """A matrix and its scale may lie in different files."""
    content = CASES["bitnet_multiplies"]()
    source = write(tmp_path, content)
    (source / "model.safetensors").unlink()
    scales = {name: tensor for name, tensor in content.stored.items() if name.endswith("_scale")}
    parts = {"a.safetensors": scales, "b.safetensors": {k: v for k, v in content.stored.items() if k not in scales}}
    for file, tensors in parts.items():
        write_tensors(source / file, tensors)
    weight_map = {name: file for file, tensors in parts.items() for name in tensors}
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    found = opened(source).read_quantized(Q)
    assert found is not None
    assert found.scale[0] == content.scales[Q]
