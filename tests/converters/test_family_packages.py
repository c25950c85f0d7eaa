"""Every family with the default precision and the operator library: logits go with those of transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from family_models import FAMILY_MODELS, GOLDEN, shapes_of, write_family_checkpoint
from package_logits import PackageLogits
from tiny_models import columns, prompts

from bitnet_onnx.converters import convert


@pytest.mark.parametrize("name", FAMILY_MODELS)
def test_default_precision_is_near(name: str, operator_library: Path, tmp_path: Path) -> None:
    model = FAMILY_MODELS[name]
    source = write_family_checkpoint(tmp_path / name, model, shapes_of(name))
    vocabulary = convert(source, tmp_path / "package", context_length=model.context).spec.vocab_size
    given = prompts(vocabulary, model.prompt_lengths)
    found = PackageLogits(tmp_path / "package", operator_library)(given[-1])[:, columns(vocabulary)]
    with np.load(GOLDEN / f"{name}.npz") as golden:
        expected = golden[f"prompt{len(given) - 1}"]
    # Four bits of random weights cost most where layers are many or their outputs weigh much.
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.85
