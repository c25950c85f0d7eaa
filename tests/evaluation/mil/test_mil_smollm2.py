"""A real model as a Core ML package: its weights, its numbers, and no overflow in half precision."""

from __future__ import annotations

from pathlib import Path

import pytest
from coreml_packages import needs_coremltools

from bitnet_onnx.api import convert_coreml
from bitnet_onnx.evaluation.mil import Options, verify

pytestmark = [pytest.mark.zoo, needs_coremltools]


def test_the_package_holds_in_half_precision_too(zoo_model: Path, tmp_path: Path) -> None:
    package = tmp_path / "smol.mlpackage"
    convert_coreml(zoo_model, package, context_length=64)
    found = verify(package, zoo_model, Options(tokens=(5,), layers=(0, 15, 29), float16=True))
    assert found.holds
    assert len(found.weights) == 272
    assert [layer.layer for layer in found.layers] == [0, 15, 29]
    assert all(layer.error <= 1e-3 for layer in found.layers)
    assert found.overflows == ()
