"""What a training run leaves: a directory that gives back exactly what was trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from bitnet_models import CASES, write
from exports import CHOSEN, write_source
from package_logits import PackageLogits
from safetensors.numpy import load_file
from training_starts import LLAMA, filled, random_start, trained_store

from bitnet_onnx.converters import Fallback, FloatType, convert
from bitnet_onnx.converters.model import open_model
from bitnet_onnx.errors import InputError, PackageError, UnsupportedError
from bitnet_onnx.policy import Policy, Precision, Weights
from bitnet_onnx.ternary import quantize_absmean
from bitnet_onnx.training.export import Stored, Trained, write_checkpoint
from bitnet_onnx.training.graph.decoder import training_graph
from bitnet_onnx.training.graph.options import STRENGTH, GraphOptions
from bitnet_onnx.training.graph.stop_gradient import as_identity
from bitnet_onnx.training.parameters import ParameterStore
from bitnet_onnx.training.settings import BlockWeights, HeadWeights, ModelSettings
from bitnet_onnx.training.start import Start, is_linear, open_start

FLOAT = Trained(BlockWeights.FLOAT, activation_bits=0)
TERNARY = Trained()
ONLINE = {
    "quant_method": "bitnet",
    "linear_class": "autobitlinear",
    "quantization_mode": "online",
    "modules_to_not_convert": ["lm_head"],
}
#: Families whose matrices lie in a checkpoint as transformers' BitNet layers read them, and those that store them
#: transposed or side by side.
SEPARATE = ["untied_gqa", "biased_mqa", "bitnet", "gemma2_caps", "opt_350m", "phi_norms_odd_heads"]
OTHERS = ["gpt2", "gpt_neox_whole", "phi3"]


def assert_convert_gives(directory: Path, package: Path, store: ParameterStore, start: Start) -> None:
    """Codes and scales of a package with the default policy are those that the training graph computes with."""
    conversion = convert(directory, package)
    assert {layer.weights for layer in conversion.layers if is_linear(layer.role)} == {Weights.TERNARY}
    with open_model(package) as model:
        for role, _ in start.spec.matrices():
            if not is_linear(role):
                continue
            found, expected = model.tensors.quantized(role), quantize_absmean(store.value(f"{role}.weight"))
            assert found is not None
            np.testing.assert_array_equal(found.signed(), expected.signed(), role)
            np.testing.assert_array_equal(found.scale, expected.scale, role)


@pytest.mark.parametrize("name", CHOSEN)
def test_floats_come_back_as_they_were(name: str, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", name)
    with open_start(ModelSettings(str(source), weights=BlockWeights.FLOAT)) as start:
        store = trained_store(start)
        result = write_checkpoint(tmp_path / "out", start, store.value, FLOAT)
        assert result.losses == ()
        with open_model(tmp_path / "out") as model:
            assert model.spec == start.spec
            for role, _ in start.spec.tensors():
                # Gemma's norms are stored less one; norms without weights are not stored.
                exact = start.spec.norm_affine and "norm" not in role
                if start.spec.norm_affine:
                    np.testing.assert_allclose(model.tensors.read(role), store.value(role), atol=0 if exact else 2e-7)
            assert model.tokenizer == start.tokenizer
            assert model.generation_config == start.generation_config
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {**json.loads((source / "config.json").read_text()), "torch_dtype": "float32"}


@pytest.mark.parametrize("name", [*SEPARATE, *OTHERS])
def test_convert_gives_the_codes_of_the_masters(name: str, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", name)
    with open_start(ModelSettings(str(source))) as start:
        store = trained_store(start)
        write_checkpoint(tmp_path / "out", start, store.value, TERNARY)
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert ("quantization_config" in config) is (name in SEPARATE)
        assert_convert_gives(tmp_path / "out", tmp_path / "package", store, start)


@pytest.mark.parametrize("name", ["biased_mqa", "bitnet", "opt_350m"])
@pytest.mark.parametrize("stored", [Stored.PACKED, Stored.VALUES])
def test_other_forms_give_the_same_codes(name: str, stored: Stored, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", name)
    with open_start(ModelSettings(str(source))) as start:
        store = trained_store(start)
        result = write_checkpoint(tmp_path / "out", start, store.value, TERNARY, stored=stored)
        assert_convert_gives(tmp_path / "out", tmp_path / "package", store, start)
        if stored is Stored.PACKED:
            assert "2 bits" in result.layout
            assert "masters" in result.losses[0]
        # Codes do not change by another type of floats; projections of the embedding are never packed.
        if stored is Stored.PACKED and not start.spec.embedding_size:
            write_checkpoint(tmp_path / "short", start, store.value, TERNARY, stored=stored, dtype=FloatType.BFLOAT16)
            assert_convert_gives(tmp_path / "short", tmp_path / "package2", store, start)


def test_masters_are_kept(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "untied_gqa")
    with open_start(ModelSettings(str(source), sub_norms=True)) as start:
        store = trained_store(start)
        result = write_checkpoint(tmp_path / "out", start, store.value, TERNARY, shard_bytes=100_000)
        assert len([name for name in result.files if name.endswith(".safetensors")]) > 1
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert config["model_type"] == "bitnet"
        assert config["quantization_config"] == ONLINE
        with open_start(ModelSettings(str(tmp_path / "out"))) as again:
            assert again.spec == start.spec
            assert again.config == {**start.config, "torch_dtype": "float32"}
            np.testing.assert_array_equal(filled(again).values, store.values)


def test_the_norm_inside_each_linear_layer_is_kept(tmp_path: Path) -> None:
    source = write(tmp_path / "source", CASES["llama_online_norms"]())
    with open_start(ModelSettings(str(source))) as start:
        store = trained_store(start)
        write_checkpoint(tmp_path / "out", start, store.value, TERNARY)
        with open_model(tmp_path / "out") as model:
            assert model.spec == start.spec
            assert model.spec.linear_norm_epsilon == pytest.approx(1e-5)
        assert_convert_gives(tmp_path / "out", tmp_path / "package", store, start)


def test_an_int8_head_is_stored_as_it_was_rounded(tmp_path: Path) -> None:
    start = random_start({**LLAMA, "tie_word_embeddings": True})
    store = trained_store(start)
    write_checkpoint(tmp_path / "out", start, store.value, Trained(head=HeadWeights.INT8))
    write_checkpoint(tmp_path / "masters", start, store.value, TERNARY)
    rounded = load_file(tmp_path / "out" / "model.safetensors")["model.embed_tokens.weight"]
    master = store.value("embed_tokens.weight")
    step = np.abs(master).max(axis=1, keepdims=True) / 128
    assert np.all(np.abs(rounded - master) <= step * 1.000001)
    assert max(len(np.unique(row)) for row in rounded) <= 256
    for name in ("out", "masters"):
        convert(tmp_path / name, tmp_path / f"package_{name}")
    with open_model(tmp_path / "package_out") as ours, open_model(tmp_path / "package_masters") as others:
        found, expected = ours.tensors.quantized("embed_tokens"), others.tensors.quantized("embed_tokens")
        assert found is not None
        assert expected is not None
        np.testing.assert_array_equal(found.raw, expected.raw)
        np.testing.assert_array_equal(found.scale, expected.scale)
        np.testing.assert_array_equal(found.dequantize(), rounded)


def test_float_activations_have_no_quantization_config(tmp_path: Path) -> None:
    start = random_start()
    store = trained_store(start)
    trained = Trained(activation_bits=0)
    write_checkpoint(tmp_path / "out", start, store.value, trained)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert_convert_gives(tmp_path / "out", tmp_path / "package", store, start)
    with pytest.raises(UnsupportedError, match="rounds activations to 8 bits"):
        write_checkpoint(tmp_path / "other", start, store.value, trained, stored=Stored.MASTERS)


@pytest.mark.parametrize(
    ("name", "stored", "message"),
    [
        ("gpt2", Stored.MASTERS, "skips layers that are stored transposed"),
        ("gpt2", Stored.PACKED, "skips layers that are stored transposed"),
        ("phi3", Stored.MASTERS, "has one scale a tensor, and 'model.layers.0.self_attn.qkv_proj.weight' holds 3"),
        ("gpt_neox", Stored.PACKED, "has one scale a tensor, and .* holds 3 matrices"),
    ],
)
def test_forms_that_a_family_has_no_room_for(name: str, stored: Stored, message: str, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", name)
    with open_start(ModelSettings(str(source))) as start:
        with pytest.raises(UnsupportedError, match=message) as raised:
            write_checkpoint(tmp_path / "out", start, start.read, TERNARY, stored=stored)
        assert "choose values" in str(raised.value)
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_rows_that_cannot_be_packed(tmp_path: Path) -> None:
    start = random_start({**LLAMA, "intermediate_size": 90})
    with pytest.raises(UnsupportedError, match=r"packs 4 rows in a byte, and .*gate_proj.weight' has 90"):
        write_checkpoint(tmp_path / "out", start, start.read, TERNARY, stored=Stored.PACKED)


@pytest.mark.parametrize("stored", [Stored.PACKED, Stored.VALUES])
def test_float_weights_are_not_rounded(stored: Stored, tmp_path: Path) -> None:
    start = random_start()
    with pytest.raises(InputError, match="trained with float weights"):
        write_checkpoint(tmp_path / "out", start, start.read, FLOAT, stored=stored)


def test_nothing_of_others_is_replaced(tmp_path: Path) -> None:
    start = random_start()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(PackageError, match="not a directory of weights of ours"):
        write_checkpoint(tmp_path / "mine", start, start.read, TERNARY, overwrite=True)
    write_checkpoint(tmp_path / "out", start, start.read, TERNARY)
    with pytest.raises(PackageError, match="--overwrite"):
        write_checkpoint(tmp_path / "out", start, start.read, TERNARY)
    write_checkpoint(tmp_path / "out", start, start.read, FLOAT, overwrite=True)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def value(_: str) -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path / "out", random_start(), value, TERNARY)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("head", HeadWeights)
@pytest.mark.parametrize(
    ("name", "sub_norms"), [("untied_gqa", True), ("tied_mha", False), ("gpt2", False), ("opt_350m", False)]
)
def test_a_package_computes_what_the_training_graph_computes(
    name: str, sub_norms: bool, head: HeadWeights, tmp_path: Path
) -> None:
    source = write_source(tmp_path / "source", name)
    policy = Policy(head=Precision(Weights.FLOAT32) if head is HeadWeights.FLOAT else Precision(Weights.INT8, 0, 8))
    with open_start(ModelSettings(str(source), sub_norms=sub_norms)) as start:
        store = trained_store(start)
        write_checkpoint(tmp_path / "out", start, store.value, Trained(head=head))
        convert(tmp_path / "out", tmp_path / "package", policy=policy, fallback=Fallback.EXACT)
        graph = training_graph(start.spec, GraphOptions(max_length=32, head=head, terms=frozenset()))
        session = ort.InferenceSession(ir.to_proto(as_identity(graph.model)).SerializeToString())
        values = {role: store.value(role) for role in graph.parameters}
        run, worst = PackageLogits(tmp_path / "package"), []
        for ids in np.random.default_rng(1).integers(0, start.spec.vocab_size, (9, 1, 4)):
            (expected,) = session.run(["logits"], {"input_ids": ids, STRENGTH: np.ones(1, np.float32), **values})
            worst.append(float(np.abs(run(ids[0]) - expected[0]).max() / expected.std()))
    # An activation on the border between two codes goes either way.
    assert np.median(worst) < 1e-5
    assert max(worst) < 0.1
