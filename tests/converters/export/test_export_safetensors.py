"""Hugging Face directories: every value as it was, ternary matrices packed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from exports import CHOSEN, FLOAT, TERNARY, assert_same_codes, assert_same_values, context_of, write_source
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny_models import TINY, tensors

from bitnet_onnx.converters import FloatType, Layout, SafetensorsOptions, Target, convert, export
from bitnet_onnx.converters.model import open_model
from bitnet_onnx.errors import InputError, PackageError, UnsupportedError
from bitnet_onnx.policy import Policy, Precision, Weights

DENSE, PACKED = SafetensorsOptions(Layout.DENSE), SafetensorsOptions(Layout.PACKED)
ONLINE = {
    "quant_method": "bitnet",
    "linear_class": "autobitlinear",
    "quantization_mode": "online",
    "modules_to_not_convert": ["lm_head"],
}


@pytest.mark.parametrize("name", CHOSEN)
def test_a_dense_directory_holds_the_tensors_of_its_source(name: str, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", name)
    written = export(source, tmp_path / "out", DENSE)
    assert written.losses == ()
    assert written.target is Target.SAFETENSORS
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    unread = before.keys() - after.keys()
    assert all(key == "lm_head.weight" or key.endswith((".bias", "inv_freq")) for key in unread), unread
    for key, value in after.items():
        # A norm that is stored less one comes back by way of one more.
        np.testing.assert_allclose(value, before[key], rtol=0, atol=1e-7 if "norm" in key else 0, err_msg=key)
    assert written.files == {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {**json.loads((source / "config.json").read_text()), "torch_dtype": "float32"}
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        if (source / file).exists():
            assert json.loads((tmp_path / "out" / file).read_text()) == json.loads((source / file).read_text())


@pytest.mark.parametrize("name", CHOSEN)
def test_ternary_packages_leave_by_either_layout_and_come_back(name: str, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", name)
    convert(source, tmp_path / "package", policy=TERNARY, context_length=context_of(name))
    dense = export(tmp_path / "package", tmp_path / "dense", DENSE)
    assert dense.losses == ()
    assert_same_values(tmp_path / "package", tmp_path / "dense", spec=context_of(name) is None)
    refusal = None
    try:
        packed = export(tmp_path / "package", tmp_path / "packed", PACKED)
    except UnsupportedError as error:
        refusal = str(error)
    if refusal is not None:
        # Matrices that are stored transposed, or that several roles with scales of their own share.
        assert "cannot be packed" in refusal
        assert "choose --format dense" in refusal
        assert not (tmp_path / "packed").exists()
        return
    assert packed.layout.startswith("blocks packed ternary")
    assert_same_codes(tmp_path / "package", tmp_path / "packed")
    assert_same_values(tmp_path / "package", tmp_path / "packed", rtol=2e-7, spec=context_of(name) is None)


def test_packed_bytes(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "bitnet")
    written = export(source, tmp_path / "out", SafetensorsOptions())
    assert "masters" in written.losses[0]
    with safe_open(tmp_path / "out" / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt", "producer": "bitnet-onnx"}
        packed = file.get_tensor("model.layers.1.mlp.up_proj.weight")
        scale = file.get_tensor("model.layers.1.mlp.up_proj.weight_scale")
    master = tensors(TINY["bitnet"])["model.layers.1.mlp.up_proj.weight"]
    mean = np.abs(master).mean()
    expected = np.clip(np.rint(master / mean), -1, 1)
    assert packed.shape == (43, 64)
    assert packed.dtype == np.uint8
    quarters = [(packed >> 2 * index & 3).astype(int) - 1 for index in range(4)]
    np.testing.assert_array_equal(np.concatenate(quarters), expected)
    assert scale == pytest.approx(mean, rel=1e-6)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"] == {**ONLINE, "quantization_mode": "offline"}


def test_masters_that_every_forward_rounds_stay_what_they_are_when_dense(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "bitnet")
    (source / "config.json").write_text(json.dumps({**TINY["bitnet"].config, "quantization_config": ONLINE}))
    assert export(source, tmp_path / "dense", DENSE).losses == ()
    assert json.loads((tmp_path / "dense" / "config.json").read_text())["quantization_config"] == ONLINE
    assert_same_codes(source, tmp_path / "dense")
    export(source, tmp_path / "packed", SafetensorsOptions())
    assert_same_codes(source, tmp_path / "packed")
    # Once they are codes, rounding them again would change them.
    convert(source, tmp_path / "package")
    export(tmp_path / "package", tmp_path / "codes", DENSE)
    assert "quantization_config" not in json.loads((tmp_path / "codes" / "config.json").read_text())
    assert_same_values(tmp_path / "package", tmp_path / "codes")


def test_a_norm_inside_every_linear_layer_needs_the_packed_layout(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "bitnet")
    weights = load_file(source / "model.safetensors")
    inner = {
        name.replace(".weight", ".rms_norm.weight"): np.full(value.shape[1], 1.5, np.float32)
        for name, value in weights.items()
        if name.endswith("_proj.weight")
    }
    save_file(weights | inner, source / "model.safetensors")
    scheme = {**ONLINE, "use_rms_norm": True, "rms_norm_eps": 1e-4}
    (source / "config.json").write_text(json.dumps({**TINY["bitnet"].config, "quantization_config": scheme}))
    convert(source, tmp_path / "package")
    with pytest.raises(UnsupportedError, match="a norm stands inside each linear layer"):
        export(tmp_path / "package", tmp_path / "dense", DENSE)
    export(tmp_path / "package", tmp_path / "packed", PACKED)
    assert_same_codes(tmp_path / "package", tmp_path / "packed")
    assert_same_values(tmp_path / "package", tmp_path / "packed")


@pytest.mark.parametrize(("dtype", "limit"), [(FloatType.BFLOAT16, 2**-8), (FloatType.FLOAT16, 2**-11)])
def test_smaller_floats_say_what_they_round(dtype: FloatType, limit: float, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "biased_mqa")
    written = export(source, tmp_path / "out", SafetensorsOptions(Layout.DENSE, dtype))
    (loss,) = written.losses
    assert f"floats as {dtype}: " in loss
    assert "relative error 0." in loss
    assert_same_values(source, tmp_path / "out", rtol=limit, atol=1e-7)
    # What the type can hold is written without a word.
    again = export(tmp_path / "out", tmp_path / "again", SafetensorsOptions(Layout.DENSE, dtype))
    assert again.losses == ()
    assert_same_values(tmp_path / "out", tmp_path / "again")


def test_shards(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "untied_gqa")
    limit = 200_000
    written = export(source, tmp_path / "out", SafetensorsOptions(Layout.DENSE, shard_bytes=limit))
    shards = sorted(name for name in written.files if name.endswith(".safetensors"))
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    assert len(shards) >= 3
    assert all(written.files[name] < limit + 4000 for name in shards)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in tensors(TINY["untied_gqa"]).values())
    assert_same_values(source, tmp_path / "out")
    with pytest.raises(PackageError, match="--overwrite"):
        export(source, tmp_path / "out", DENSE)


@pytest.mark.parametrize("policy", [FLOAT, Policy(Precision(Weights.INT4))])
def test_what_is_not_ternary_cannot_be_packed(policy: Policy, tmp_path: Path) -> None:
    convert(write_source(tmp_path / "source", "untied_gqa"), tmp_path / "package", policy=policy)
    reason = r"'model\.layers\.0\.self_attn\.q_proj\.weight' cannot be packed: it is not ternary"
    with pytest.raises(UnsupportedError, match=reason) as caught:
        export(tmp_path / "package", tmp_path / "out", PACKED)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["package", "source"]
    assert export(tmp_path / "package", tmp_path / "out", SafetensorsOptions()).layout == "dense float32"
    assert_same_values(tmp_path / "package", tmp_path / "out")


@pytest.mark.parametrize(
    ("rows", "scales", "reason"),
    [
        (172, "rows", "it has several scales, and the format one a matrix"),
        (170, "one", "it has 170 rows: four of them share a byte"),
    ],
)
def test_ternary_matrices_that_the_format_has_no_room_for(rows: int, scales: str, reason: str, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "tied_mha")
    weights = load_file(source / "model.safetensors")
    for name, value in weights.items():
        if not name.endswith("_proj.weight"):
            continue
        kept = value[:, :rows] if "down_proj" in name else value[:rows]
        steps = np.linspace(1, 2, len(kept), dtype=np.float32)[:, None] if scales == "rows" else np.float32(1)
        weights[name] = np.ascontiguousarray(np.sign(kept) * steps)
    save_file(weights, source / "model.safetensors")
    (source / "config.json").write_text(json.dumps({**TINY["tied_mha"].config, "intermediate_size": rows}))
    with pytest.raises(UnsupportedError, match=reason):
        export(source, tmp_path / "out", PACKED)
    export(source, tmp_path / "dense", DENSE)
    convert(tmp_path / "dense", tmp_path / "package")
    with open_model(tmp_path / "package") as model:
        codes = model.tensors.quantized("layers.0.mlp.up_proj")
        assert codes is not None
        np.testing.assert_array_equal(codes.dequantize(), weights["model.layers.0.mlp.up_proj.weight"])


def test_a_value_beyond_a_smaller_type(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "tied_mha")
    weights = load_file(source / "model.safetensors")
    weights["model.norm.weight"][3] = 70_000
    save_file(weights, source / "model.safetensors")
    with pytest.raises(UnsupportedError, match=r"'model\.norm\.weight' holds 70000: float16 ends at 65504"):
        export(source, tmp_path / "out", SafetensorsOptions(dtype=FloatType.FLOAT16))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
    weights["model.norm.weight"][3] = np.finfo(np.float32).max
    save_file(weights, source / "model.safetensors")
    with pytest.raises(UnsupportedError, match="beyond the range of bfloat16; choose float32"):
        export(source, tmp_path / "out", SafetensorsOptions(dtype=FloatType.BFLOAT16))


def test_only_what_was_written_here_is_replaced(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "tied_mha")
    export(source, tmp_path / "out", DENSE)
    with pytest.raises(PackageError, match="--overwrite"):
        export(source, tmp_path / "out", DENSE)
    written = export(source, tmp_path / "out", SafetensorsOptions(Layout.DENSE, FloatType.BFLOAT16), overwrite=True)
    assert written.layout == "dense bfloat16"
    assert_same_values(source, tmp_path / "out", rtol=2**-8)
    other = shutil.copytree(source, tmp_path / "other")
    before = (other / "model.safetensors").read_bytes()
    with pytest.raises(PackageError, match="written by something else"):
        export(source, other, DENSE, overwrite=True)
    assert (other / "model.safetensors").read_bytes() == before
    with pytest.raises(PackageError, match="holds the source"):
        export(source, source, DENSE, overwrite=True)
    with pytest.raises(InputError, match="there is no such file"):
        export(tmp_path / "absent", tmp_path / "new", DENSE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out", "source"]


def test_a_context_of_its_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"keeps the context of its config\.json"):
        export(write_source(tmp_path / "source", "tied_mha"), tmp_path / "out", DENSE, context_length=64)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
