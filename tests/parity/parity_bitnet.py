"""BitNet against torch: the ternary weights and the logits of transformers' own online quantization.

Run by `make parity`. The plain float32 model is compared with the other tiny ones in `parity_llama.py`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from package_logits import PackageLogits
from safetensors.torch import save_file
from tiny_models import TINY, prompts, tensors, write_checkpoint
from transformers.integrations.bitnet import AutoBitLinear, WeightQuant

from bitnet_onnx.converters import Fallback, convert
from bitnet_onnx.converters.checkpoints import open_checkpoint
from bitnet_onnx.converters.families.bitnet import tensor_name
from bitnet_onnx.decoder import ATTENTION_INPUTS, MLP_INPUTS
from bitnet_onnx.policy import Policy, Precision, Weights

ONLINE = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
ROLES = [
    f"layers.{index}.{role}"
    for index in range(2)
    for role in (
        *(f"attn.{name}" for name in (*ATTENTION_INPUTS, "o_proj")),
        *(f"mlp.{name}" for name in (*MLP_INPUTS, "down_proj")),
    )
]
#: In units of the logits' deviation. An activation on the border between two codes goes either way with the order of
#: a float sum, and moves the logits from that position on; where none does, they agree to rounding.
ROUNDING, FLIPPED = 1e-5, 5e-2


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32 masters", "bfloat16 masters"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    model = TINY["bitnet"]
    source = write_checkpoint(tmp_path / "source", model)
    masters = {name: torch.from_numpy(value).to(request.param) for name, value in tensors(model).items()}
    save_file(masters, source / "model.safetensors", metadata={"format": "pt"})
    (source / "config.json").write_text(json.dumps(model.config | {"quantization_config": ONLINE}))
    return source


@pytest.fixture
def reference(checkpoint: Path) -> Iterator[transformers.PreTrainedModel]:
    with torch.compiler.set_stance("force_eager"):
        yield transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


def test_codes_and_scales(checkpoint: Path, reference: transformers.PreTrainedModel) -> None:
    policy = Policy().for_ternary_masters()
    with open_checkpoint(checkpoint) as opened:
        for role in ROLES:
            name = tensor_name(f"{role}.weight")
            ours = policy.precision(role).quantize(opened.read(name))
            layer = reference.get_submodule(name.removesuffix(".weight"))
            assert isinstance(layer, AutoBitLinear)
            theirs = WeightQuant.apply(layer.weight).detach().numpy()
            assert ours is not None
            assert np.array_equal(ours.signed(), np.sign(theirs))
            assert ours.scale == pytest.approx(np.abs(theirs).max(), rel=1e-6)


def test_logits(checkpoint: Path, reference: transformers.PreTrainedModel, tmp_path: Path) -> None:
    package = tmp_path / "package"
    floats = Precision(Weights.FLOAT32)
    layers = convert(checkpoint, package, policy=Policy(head=floats), fallback=Fallback.EXACT).layers
    assert {layer.role for layer in layers if layer.weights is Weights.TERNARY} == set(ROLES)
    run = PackageLogits(package)
    for ids in prompts(515):
        with torch.no_grad():
            expected = reference(torch.from_numpy(ids)[None]).logits[0].numpy()
        for chunk in (None, 1):
            logits = run(ids, chunk)
            rows = np.abs(logits - expected).max(axis=1) / expected.std()
            sys.stdout.write(f"{len(ids)} tokens, chunk {chunk}: |dlogit| {np.median(rows):.1e} .. {rows.max():.1e}\n")
            assert np.median(rows) <= ROUNDING
            assert rows.max() <= FLIPPED
            np.testing.assert_array_equal(logits.argmax(-1), expected.argmax(-1))
