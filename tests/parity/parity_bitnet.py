"""BitNet in every stored form against transformers in float32: codes and integer sums exactly, logits within 1e-3.

Run by `make parity`. `BITNET_ONNX_WRITE_GOLDEN=1` writes `tests/golden/bitnet_*.npz` anew, with which the tests
without torch compare. Logits are compared on prompts where the reference's own rounding noise decides no activation's
code; elsewhere the reference differs from itself by as much as from anything.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from bitnet_models import CASES, MULTIPLIES, ONLINE, REFERENCES, Packed, masters, write
from bitnet_reference import bit_layers, find_prompt, load, logits, own_noise
from package_logits import PackageLogits
from tiny_models import TINY, columns, write_checkpoint
from transformers.integrations.bitnet import ActQuant, AutoBitLinear, BitLinear, WeightQuant, unpack_weights
from transformers.quantizers.quantizers_utils import should_convert_module

from bitnet_onnx.activations import quantize_activations
from bitnet_onnx.bitlinear import PackedLinear, bitlinear
from bitnet_onnx.converters import Fallback, convert
from bitnet_onnx.converters._module_patterns import ModulePatterns
from bitnet_onnx.converters.checkpoints import open_checkpoint
from bitnet_onnx.converters.model import open_model
from bitnet_onnx.errors import CheckpointError
from bitnet_onnx.policy import Policy, Precision, Weights
from bitnet_onnx.quantized import QuantizedTensor
from bitnet_onnx.ternary import quantize_absmean

GOLDEN = Path(__file__).parents[1] / "golden"
torch.set_num_threads(1)  # the models are tiny

LENGTHS = (1, 7, 40)
UNSTABLE_LENGTHS = (100, 200)
TOLERANCE = 1e-3
FLOAT_HEAD = Precision(Weights.FLOAT32)
POLICY = Policy(head=FLOAT_HEAD)
FLOAT_ACTIVATIONS = Policy(Precision(Weights.AUTO, activation_bits=0), FLOAT_HEAD)


@pytest.fixture(autouse=True)
def _eager() -> Iterator[None]:
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, Packed]:
    return request.param, CASES[request.param]()


@pytest.fixture(scope="module")
def source(case: tuple[str, Packed], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp(case[0]), case[1])


@pytest.fixture(scope="module")
def reference(
    case: tuple[str, Packed], source: Path, tmp_path_factory: pytest.TempPathFactory
) -> transformers.PreTrainedModel:
    if case[0] in REFERENCES:
        source = write(tmp_path_factory.mktemp(case[0]), REFERENCES[case[0]]())
    with torch.compiler.set_stance("force_eager"):
        return load(source)


def prompts(model: transformers.PreTrainedModel, lengths: tuple[int, ...], *, stable: bool) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    vocab = model.config.vocab_size
    return [find_prompt(model, lambda n=n: rng.integers(0, vocab, n), stable=stable) for n in lengths]


@pytest.fixture(scope="module")
def stable(reference: transformers.PreTrainedModel) -> list[np.ndarray]:
    return prompts(reference, LENGTHS, stable=True)


def is_master(case: str) -> bool:
    return "online" in case or "original" in case


def weights_of(layer: BitLinear | AutoBitLinear) -> tuple[np.ndarray, np.float32]:
    """The reference's codes, and the value of one step."""
    if isinstance(layer, BitLinear):
        return unpack_weights(layer.weight, torch.float32).numpy(), np.float32(1) / layer.weight_scale.numpy()[0]
    if layer.online_quant:
        values = WeightQuant.apply(layer.weight).detach().numpy()
        return np.sign(values), np.abs(values).max()
    return layer.weight.detach().numpy(), layer.weight_scale.numpy()[0]


def quantized(source: Path) -> dict[str, QuantizedTensor]:
    with open_model(source) as model:
        roles = [role for role, _ in model.spec.matrices() if "_proj" in role]
        return {
            f"model.{role.replace('.attn.', '.self_attn.')}": model.tensors.quantized(role)
            or quantize_absmean(model.tensors.read(f"{role}.weight"))
            for role in roles
        }


def test_codes_and_scales(source: Path, reference: transformers.PreTrainedModel, case: tuple[str, Packed]) -> None:
    ours, layers = quantized(source), bit_layers(reference)
    assert set(ours) == set(layers)
    for name, layer in layers.items():
        codes, step = weights_of(layer)
        np.testing.assert_array_equal(ours[name].signed(), codes)
        # Masters: the order of the mean's sum. Otherwise the stored number itself.
        assert ours[name].scale == pytest.approx(step, rel=1e-6 if is_master(case[0]) else 0, abs=0)
        np.testing.assert_array_equal(case[1].codes[f"{name}.weight"], codes)


def test_integer_sums(source: Path, reference: transformers.PreTrainedModel) -> None:
    ours, layers = quantized(source), bit_layers(reference)
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    hooks = [
        layer.register_forward_hook(lambda _, args, output, name=name: seen.update({name: (args[0][0], output[0])}))
        for name, layer in layers.items()
    ]
    logits(reference, np.arange(64))
    for hook in hooks:
        hook.remove()
    for name, layer in layers.items():
        x, output = seen[name]
        x = x if layer.rms_norm is None else layer.rms_norm(x).detach()
        codes, scale = quantize_activations(x.numpy())
        theirs, their_scale = BitLinear.activation_quant(layer, x)
        np.testing.assert_array_equal(codes, theirs.numpy())
        # torch computes 127 * (1 / peak): the last place of the scale may differ.
        np.testing.assert_allclose(scale, their_scale[:, 0].numpy(), rtol=2e-7)
        np.testing.assert_allclose(codes / scale[:, None], ActQuant.apply(x).numpy(), rtol=3e-7)
        sums = torch.nn.functional.linear(theirs.float(), torch.from_numpy(weights_of(layer)[0]).float())
        np.testing.assert_array_equal(codes.astype(np.int64) @ ours[name].signed().astype(np.int64).T, sums.numpy())
        with open_checkpoint(source) as checkpoint:
            bias = checkpoint.read(f"{name}.bias") if f"{name}.bias" in checkpoint.tensors else None
        linear = bitlinear(x.numpy(), PackedLinear.from_quantized(ours[name], bias=bias))
        np.testing.assert_allclose(linear, output.numpy(), rtol=0, atol=3e-6 * float(output.abs().max()))


def difference(
    package: Path, reference: transformers.PreTrainedModel, ids: np.ndarray, chunk: int | None = None
) -> float:
    return float(np.abs(PackageLogits(package)(ids, chunk) - logits(reference, ids)).max())


def test_logits_on_stable_prompts(
    case: tuple[str, Packed],
    source: Path,
    reference: transformers.PreTrainedModel,
    stable: list[np.ndarray],
    tmp_path: Path,
) -> None:
    conversion = convert(source, tmp_path / "package", policy=POLICY, fallback=Fallback.EXACT)
    assert {layer.weights for layer in conversion.layers if "_proj" in layer.role} == {Weights.TERNARY}
    for ids in stable:
        for chunk in (None, 1):
            found = difference(tmp_path / "package", reference, ids, chunk)
            sys.stdout.write(f"{case[0]}: {len(ids)} tokens, chunk {chunk}: max |dlogit| {found:.1e}\n")
            assert found <= TOLERANCE
    check_golden(case, reference, stable)


def check_golden(case: tuple[str, Packed], reference: transformers.PreTrainedModel, chosen: list[np.ndarray]) -> None:
    kept = columns(reference.config.vocab_size)
    fresh = {}
    for name, layer in bit_layers(reference).items():
        codes, step = weights_of(layer)
        fresh |= {f"codes.{name}": codes.astype(np.int8), f"scale.{name}": np.float32(step)}
    for index, ids in enumerate(chosen):
        fresh |= {f"ids{index}": ids.astype(np.int32), f"logits{index}": logits(reference, ids)[:, kept]}
    path = GOLDEN / f"bitnet_packed_{case[0]}.npz"
    if os.environ.get("BITNET_ONNX_WRITE_GOLDEN") == "1":
        np.savez_compressed(path, **fresh)
    with np.load(path) as golden:
        assert set(golden) == set(fresh)
        for key, values in fresh.items():
            exact = key.startswith(("codes", "ids"))
            np.testing.assert_allclose(golden[key], values, rtol=0 if exact else 1e-6, atol=0 if exact else 1e-4)


def test_logits_elsewhere_within_the_noise_of_the_reference(
    case: tuple[str, Packed], source: Path, reference: transformers.PreTrainedModel, tmp_path: Path
) -> None:
    convert(source, tmp_path / "package", policy=POLICY, fallback=Fallback.EXACT)
    for ids in prompts(reference, UNSTABLE_LENGTHS, stable=False):
        own, found = own_noise(reference, ids), difference(tmp_path / "package", reference, ids)
        sys.stdout.write(f"{case[0]}: {len(ids)} tokens: max |dlogit| {found:.1e}, of the reference {own:.1e}\n")
        assert found <= 2 * own


def test_what_would_be_wrong_is_seen(
    case: tuple[str, Packed],
    source: Path,
    reference: transformers.PreTrainedModel,
    stable: list[np.ndarray],
    tmp_path: Path,
) -> None:
    """Each of these changes moves logits far more than the tolerance: the comparison above would fail."""
    ids = stable[1]
    convert(source, tmp_path / "float", policy=FLOAT_ACTIVATIONS, fallback=Fallback.EXACT)
    found = difference(tmp_path / "float", reference, ids)
    sys.stdout.write(f"{case[0]}: float activations: max |dlogit| {found:.1e}\n")
    assert found > 5 * TOLERANCE
    if is_master(case[0]):
        convert(source, tmp_path / "masters", policy=Policy(FLOAT_HEAD, FLOAT_HEAD))
        assert difference(tmp_path / "masters", reference, ids) > 100 * TOLERANCE
        return
    quantization = dict(case[1].config["quantization_config"])
    flipped = "bitlinear" if quantization.get("linear_class") == "autobitlinear" else "autobitlinear"
    config = {**case[1].config, "quantization_config": {**quantization, "linear_class": flipped}}
    wrong = write(tmp_path / "wrong", case[1])
    (wrong / "config.json").write_text(json.dumps(config))
    if "dense" in case[0]:
        with pytest.raises(CheckpointError, match="linear_class bitlinear stores U8"):
            convert(wrong, tmp_path / "flipped")
        return
    convert(wrong, tmp_path / "flipped", policy=POLICY, fallback=Fallback.EXACT)
    found = difference(tmp_path / "flipped", reference, ids)
    sys.stdout.write(f"{case[0]}: flipped sense: max |dlogit| {found:.1e}\n")
    assert found > 100 * TOLERANCE


def test_float32_masters(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", TINY["bitnet"])
    (source / "config.json").write_text(json.dumps({**TINY["bitnet"].config, "quantization_config": ONLINE}))
    reference = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    for name, tensor in quantized(source).items():
        codes, step = weights_of(bit_layers(reference)[name])
        np.testing.assert_array_equal(tensor.signed(), codes)
        assert tensor.scale == pytest.approx(step, rel=1e-6)
    convert(source, tmp_path / "package", policy=POLICY, fallback=Fallback.EXACT)
    for ids in prompts(reference, LENGTHS, stable=True):
        assert difference(tmp_path / "package", reference, ids) <= TOLERANCE


def test_masters_are_never_read_as_packed(tmp_path: Path) -> None:
    source = write(tmp_path / "source", masters(TINY["bitnet"], MULTIPLIES))
    with pytest.raises(CheckpointError, match=r"_proj.weight' is BF16 without a weight_scale"):
        convert(source, tmp_path / "package")


def test_modules_that_are_kept() -> None:
    entries = [
        "lm_head",
        "mlp.gate",
        "model.layers.1",
        r"model\.layers\.\d+\.mlp",
        "layers.*.k_proj",
        "o_pro",
        "q|v",
        "",
    ]
    names = [
        f"model.layers.{index}.{name}"
        for index in (0, 1, 11)
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.gate")
    ] + ["lm_head", "model.lm_head", "lm_head.x", "v", "q.v"]
    for entry in entries:
        for name in names:
            assert ModulePatterns([entry], "list").match(name) != should_convert_module(name, [entry]), (entry, name)
