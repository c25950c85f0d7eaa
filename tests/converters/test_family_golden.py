"""Float32 packages of every family compute what transformers computes: whole, token by token, and in ragged batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from family_models import FAMILY_MODELS, GOLDEN, shapes_of, write_family_checkpoint
from package_logits import PackageLogits
from tiny_models import TOLERANCE, columns, prompts

from bitnet_onnx.converters import convert
from bitnet_onnx.policy import Policy, Precision, Weights

FLOAT = Policy(Precision(Weights.FLOAT32), Precision(Weights.FLOAT32))


@pytest.mark.parametrize("name", FAMILY_MODELS)
def test_logits(name: str, tmp_path: Path) -> None:
    model = FAMILY_MODELS[name]
    source = write_family_checkpoint(tmp_path / name, model, shapes_of(name))
    vocabulary = convert(source, tmp_path / "package", policy=FLOAT, context_length=model.context).spec.vocab_size
    run, chosen = PackageLogits(tmp_path / "package"), columns(vocabulary)
    given = prompts(vocabulary, model.prompt_lengths)
    with np.load(GOLDEN / f"{name}.npz") as golden:
        expected = [golden[f"prompt{index}"] for index in range(len(given))]
    for ids, logits in zip(given, expected, strict=True):
        for chunk in (None, 1):
            np.testing.assert_allclose(run(ids, chunk)[:, chosen], logits, rtol=0, atol=TOLERANCE)
    for found, logits in zip(run.ragged(given), expected, strict=True):
        np.testing.assert_allclose(found[:, chosen], logits, rtol=0, atol=TOLERANCE)
