"""BitNet packages compute what transformers computes: golden logits of every stored form, and what would be wrong.

`make parity` writes the golden files, on prompts where the reference's own rounding noise decides nothing.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bitnet_models import CASES, FALCON, MULTIPLIES, Packed, masters, stored, write
from package_logits import PackageLogits
from tiny_models import TINY, TOLERANCE, TinyModel, columns, tensors

from bitnet_onnx.converters import Fallback, convert
from bitnet_onnx.converters.model import open_model
from bitnet_onnx.errors import CheckpointError
from bitnet_onnx.policy import Policy, Precision, Weights
from bitnet_onnx.ternary import quantize_absmean

GOLDEN = Path(__file__).parents[1] / "golden"
FLOAT_HEAD = Precision(Weights.FLOAT32)
POLICY = Policy(head=FLOAT_HEAD)


def differences(case: str, source: Path, package: Path, policy: Policy = POLICY) -> list[float]:
    """The largest difference of a logit on each golden prompt."""
    convert(source, package, policy=policy, fallback=Fallback.EXACT)
    run, chosen = PackageLogits(package), columns(515)
    with np.load(GOLDEN / f"bitnet_packed_{case}.npz") as golden:
        return [
            float(np.abs(run(golden[f"ids{index}"], chunk)[:, chosen] - golden[f"logits{index}"]).max())
            for index in range(3)
            for chunk in (None, 1)
        ]


@pytest.mark.parametrize("case", CASES)
def test_logits(case: str, tmp_path: Path) -> None:
    found = differences(case, write(tmp_path / "source", CASES[case]()), tmp_path / "package")
    assert max(found) <= TOLERANCE


@pytest.mark.parametrize("case", ["bitnet_multiplies", "llama_divides_norms"])
def test_the_other_sense_would_be_seen(case: str, tmp_path: Path) -> None:
    content = CASES[case]()
    quantization = content.config["quantization_config"]
    assert isinstance(quantization, dict)
    other = "autobitlinear" if "divides" in case else "bitlinear"
    content.config["quantization_config"] = {**quantization, "linear_class": other}
    found = differences(case, write(tmp_path / "source", content), tmp_path / "package")
    assert min(found) > 100 * TOLERANCE


@pytest.mark.parametrize("case", ["bitnet_divides", "llama_multiplies", "llama_online_norms"])
def test_float_activations_would_be_seen(case: str, tmp_path: Path) -> None:
    policy = Policy(Precision(Weights.AUTO, activation_bits=0), FLOAT_HEAD)
    found = differences(case, write(tmp_path / "source", CASES[case]()), tmp_path / "package", policy)
    assert min(found) > 2 * TOLERANCE


def test_masters_are_not_what_a_model_computes_with(tmp_path: Path) -> None:
    source = write(tmp_path / "source", CASES["bitnet_online"]())
    found = differences("bitnet_online", source, tmp_path / "package", Policy(FLOAT_HEAD, FLOAT_HEAD))
    assert min(found) > 100 * TOLERANCE
    packed = write(tmp_path / "packed", masters(TINY["bitnet"], MULTIPLIES))
    with pytest.raises(CheckpointError, match=r"_proj.weight' is BF16 without a weight_scale"):
        convert(packed, tmp_path / "other")


def test_only_the_linear_layers_of_blocks_are_ternary(tmp_path: Path) -> None:
    source = write(tmp_path / "source", CASES["llama_multiplies"]())
    conversion = convert(source, tmp_path / "package", policy=POLICY)
    assert conversion.trained_ternary
    ternary = {layer.role for layer in conversion.layers if layer.weights is Weights.TERNARY}
    assert ternary == {layer.role for layer in conversion.layers if "_proj" in layer.role}
    assert {layer.relative_error for layer in conversion.layers} == {0}
    manifest = json.loads((tmp_path / "package" / "bitnet_onnx.json").read_text())
    assert len(manifest["layers"]) == 16


# Wider than the other tiny models, so that a shard of columns is a group.
WIDE = TinyModel(21, {**FALCON.config, "is_bitnet_config": False, "intermediate_size": 256, "hidden_size": 128})


@pytest.mark.parametrize("axis", [0, 1], ids=["rows", "columns"])
def test_floats_that_are_ternary_with_a_scale_for_each_shard_are_kept(axis: int, tmp_path: Path) -> None:
    """TriLM: a plain Llama in float16 whose matrices are {-a, 0, a} with one `a` for each half of rows or columns."""
    content, expected = Packed(dict(WIDE.config), {}), {}
    for name, master in tensors(WIDE).items():
        values = master
        if name.endswith("_proj.weight"):
            codes = quantize_absmean(master).signed()
            halves = np.array_split(codes, 2, axis)
            scaled = [half * np.float16(scale) for half, scale in zip(halves, (0.0625, 0.0937), strict=True)]
            values = np.concatenate(scaled, axis).astype(np.float32)
            expected[name.removeprefix("model.").removesuffix(".weight").replace("self_attn", "attn")] = values
        content.stored[name] = stored(values, "F16")
    source = write(tmp_path / "source", content)
    conversion = convert(source, tmp_path / "package")
    found = {layer.role: layer for layer in conversion.layers if "_proj" in layer.role}
    assert set(found) == set(expected)
    for role, layer in found.items():
        assert (layer.weights, layer.relative_error) == (Weights.TERNARY, 0), role
    with open_model(source) as model:
        for role, values in expected.items():
            kept = Precision(Weights.AUTO).quantize(model.tensors.read(f"{role}.weight"))
            assert kept is not None
            np.testing.assert_array_equal(kept.dequantize(), values.astype(np.float16).astype(np.float32))
