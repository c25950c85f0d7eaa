"""Against torch: golden files are what transformers computes, and packages compute the same.

Run by `make parity`, in an environment with torch and transformers. `BITNET_ONNX_WRITE_GOLDEN=1` writes the golden
files anew instead of comparing with them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from package_logits import PackageLogits
from tiny_models import TINY, TOLERANCE, columns, prompts, write_checkpoint
from tokenizers import Tokenizer

from bitnet_onnx.converters import convert
from bitnet_onnx.converters.checkpoints import open_checkpoint
from bitnet_onnx.model_zoo import resolve
from bitnet_onnx.policy import Policy, Precision, Weights

GOLDEN = Path(__file__).parents[1] / "golden"
FLOAT = Policy(Precision(Weights.FLOAT32), Precision(Weights.FLOAT32))


def reference_logits(model: transformers.PreTrainedModel) -> list[np.ndarray]:
    model.eval()
    with torch.no_grad():
        return [
            model(torch.from_numpy(ids)[None]).logits[0].float().numpy() for ids in prompts(model.config.vocab_size)
        ]


def check_golden(name: str, logits: list[np.ndarray]) -> None:
    chosen = columns(logits[0].shape[1])
    fresh = {f"prompt{index}": part[:, chosen] for index, part in enumerate(logits)}
    path = GOLDEN / f"{name}.npz"
    if os.environ.get("BITNET_ONNX_WRITE_GOLDEN") == "1":
        np.savez_compressed(path, **fresh)
    with np.load(path) as golden:
        assert set(golden) == set(fresh)
        for key, values in fresh.items():
            np.testing.assert_allclose(golden[key], values, rtol=0, atol=TOLERANCE / 10)


def check_package(package: Path, logits: list[np.ndarray]) -> None:
    run = PackageLogits(package)
    for ids, expected in zip(prompts(logits[0].shape[1]), logits, strict=True):
        for chunk in (None, 1):
            difference = np.abs(run(ids, chunk) - expected).max()
            sys.stdout.write(
                f"{package.parent.name}: {len(ids)} tokens, chunk {chunk}: max |dlogit| {difference:.1e}\n"
            )
            assert difference <= TOLERANCE


@pytest.mark.parametrize("name", TINY)
def test_tiny_models(name: str, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / name, TINY[name])
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    logits = reference_logits(model)
    check_golden(name, logits)
    convert(source, tmp_path / "package", policy=FLOAT)
    check_package(tmp_path / "package", logits)


def test_smollm2(tmp_path: Path) -> None:
    source = resolve("smollm2-135m-instruct")
    model = transformers.AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    logits = reference_logits(model)
    check_golden("smollm2-135m-instruct", logits)
    convert(source, tmp_path / "package", policy=FLOAT)
    check_package(tmp_path / "package", logits)


def test_smollm2_tokenizer() -> None:
    source = resolve("smollm2-135m-instruct")
    theirs = transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    with open_checkpoint(source) as checkpoint:
        ours = Tokenizer.from_str(checkpoint.tokenizer().files["tokenizer.json"].decode())
    # No fractions such as one half: the model's own rule sets every numeric character apart, while the reference
    # reads the GGUF with the plain GPT-2 rule.
    texts = [
        "The quick brown fox jumps over 13 lazy dogs in 2024.",
        "def f(x):\n\treturn x**2  # square\n\n\n",
        "naïve café — “quotes” … 漢字 ひらがな 한국어 🙂👩‍👩‍👧 e\u0301",
        "<|im_start|>user\nHello<|im_end|>\n",
        "   leading and trailing   ",
        "",
    ]
    for text in texts:
        assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text, add_special_tokens=False), text
