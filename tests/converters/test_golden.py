"""Float32 packages compute what transformers computes: the golden files hold its logits.

`make parity` writes the golden files and compares with torch itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from package_logits import PackageLogits
from tiny_models import TINY, TOLERANCE, columns, prompts

from bitnet_onnx.converters import convert
from bitnet_onnx.policy import Policy, Precision, Weights

GOLDEN = Path(__file__).parents[1] / "golden"
FLOAT = Policy(Precision(Weights.FLOAT32), Precision(Weights.FLOAT32))


def check(package: Path, name: str, vocab_size: int) -> None:
    run = PackageLogits(package)
    chosen = columns(vocab_size)
    with np.load(GOLDEN / f"{name}.npz") as golden:
        for index, ids in enumerate(prompts(vocab_size)):
            expected = golden[f"prompt{index}"]
            assert expected.shape == (len(ids), len(chosen))
            for chunk in (None, 1):
                np.testing.assert_allclose(run(ids, chunk)[:, chosen], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", TINY)
def test_tiny_models(name: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    convert(tiny_checkpoint(name), tmp_path / "package", policy=FLOAT)
    check(tmp_path / "package", name, int(str(TINY[name].config["vocab_size"])))


@pytest.mark.zoo
def test_smollm2(zoo_model: Path, tmp_path: Path) -> None:
    conversion = convert(zoo_model, tmp_path / "package", policy=FLOAT)
    check(tmp_path / "package", "smollm2-135m-instruct", conversion.spec.vocab_size)
