"""Exported directories against transformers: it loads them, and computes what the package computes.

Run by `make parity`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from exports import SOURCES, assert_same_codes, context_of, write_source
from family_models import FAMILY_MODELS
from package_logits import PackageLogits
from tiny_models import TINY, TOLERANCE, prompts

from bitnet_onnx.converters import Fallback, FloatType, GgufOptions, Layout, SafetensorsOptions, convert, export
from bitnet_onnx.policy import Policy, Precision, Weights

FLOAT = Precision(Weights.FLOAT32)
#: In units of the logits' deviation; an activation on the border between two codes goes either way.
ROUNDING, FLIPPED = 1e-5, 5e-2


def logits(directory: Path, ids: np.ndarray) -> np.ndarray:
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        return model(torch.from_numpy(ids)[None]).logits[0].numpy()


@pytest.mark.parametrize("name", TINY)
def test_packed(name: str, tmp_path: Path) -> None:
    source, package, packed = write_source(tmp_path / "source", name), tmp_path / "package", tmp_path / "packed"
    convert(source, package, policy=Policy(Precision(Weights.TERNARY), FLOAT), fallback=Fallback.EXACT)
    export(package, packed, SafetensorsOptions(Layout.PACKED))
    run = PackageLogits(package)
    for ids in prompts(515):
        expected, found = logits(packed, ids), run(ids)
        rows = np.abs(found - expected).max(axis=1) / expected.std()
        sys.stdout.write(f"{name}, {len(ids)} tokens: |dlogit| {np.median(rows):.1e} .. {rows.max():.1e}\n")
        assert np.median(rows) <= ROUNDING
        assert rows.max() <= FLIPPED
        np.testing.assert_array_equal(found.argmax(-1), expected.argmax(-1))
    assert_same_codes(package, packed)


@pytest.mark.parametrize("name", [name for name in SOURCES if context_of(name) is None])
def test_dense(name: str, tmp_path: Path) -> None:
    source, package, dense = write_source(tmp_path / "source", name), tmp_path / "package", tmp_path / "dense"
    context = convert(source, package, policy=Policy(FLOAT, FLOAT)).spec.context_length
    export(package, dense, SafetensorsOptions(Layout.DENSE))
    run = PackageLogits(package)
    for ids in (prompt[:context] for prompt in prompts(515)):
        if name not in FAMILY_MODELS or not FAMILY_MODELS[name].one_by_one:
            np.testing.assert_allclose(run(ids), logits(dense, ids), rtol=0, atol=TOLERANCE)
        # The same weights at other addresses: sums come in another order.
        np.testing.assert_allclose(logits(dense, ids), logits(source, ids), rtol=1e-5, atol=1e-5)


def test_a_gguf_goes_on_as_a_directory(tmp_path: Path) -> None:
    """Divisors of rotary frequencies, which a GGUF has in place of Llama 3's rule."""
    source = write_source(tmp_path / "source", "untied_gqa")
    export(source, tmp_path / "model.gguf", GgufOptions(dtype=FloatType.FLOAT32))
    export(tmp_path / "model.gguf", tmp_path / "directory", SafetensorsOptions())
    for ids in prompts(515):
        np.testing.assert_allclose(logits(tmp_path / "directory", ids), logits(source, ids), rtol=0, atol=TOLERANCE)
