"""The runtime's own graph of every family gives the logits of the last position, in chunks and with the kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from family_models import FAMILY_MODELS, shapes_of, write_family_checkpoint
from package_logits import PackageLogits
from tiny_models import TOLERANCE, prompts

from bitnet_onnx.converters import convert
from bitnet_onnx.policy import Policy, Precision, Weights
from bitnet_onnx.runtime.devices import auto_select_device
from bitnet_onnx.runtime.package import PackageInfo
from bitnet_onnx.runtime.session import DecoderSession

FLOAT = Policy(Precision(Weights.FLOAT32), Precision(Weights.FLOAT32))


@pytest.mark.parametrize("name", FAMILY_MODELS)
def test_last_logits(name: str, tmp_path: Path) -> None:
    model = FAMILY_MODELS[name]
    source = write_family_checkpoint(tmp_path / name, model, shapes_of(name))
    vocabulary = convert(source, tmp_path / "package", policy=FLOAT, context_length=model.context).spec.vocab_size
    ids = prompts(vocabulary, model.prompt_lengths)[-1]
    session = DecoderSession(PackageInfo.open(tmp_path / "package"), auto_select_device(), threads=2, prefill_chunk=64)
    last = session.step(ids.tolist(), session.new_cache())
    np.testing.assert_allclose(last, PackageLogits(tmp_path / "package")(ids)[-1], rtol=0, atol=TOLERANCE)
