"""The benchmark of attention: that it measures what it says, not how fast that is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from bitnet_onnx.benchmarks import attention
from bitnet_onnx.benchmarks.attention import KINDS, Heads
from bitnet_onnx.errors import OperatorError
from bitnet_onnx.runtime.devices import Device, auto_select_device

HEADS = Heads("small", 6, 2, 32, 3)


@pytest.mark.usefixtures("needs_library")
def test_every_case_is_reported(checked, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "attention.json"
    arguments = ["--context", "16", "--context", "40", "--threads", "1", "--rounds", "2", "--out", str(out)]
    result = CliRunner().invoke(attention.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    cases = checked(out, "attention")["comparisons"]
    assert [case["case"] for case in cases] == [
        f"{model}, context {context}" for model in ("SmolLM2 135M", "Llama 3 8B") for context in (16, 40)
    ]
    for case in cases:
        assert list(case["candidates"]) == [kind.name for kind in KINDS]


@pytest.mark.usefixtures("needs_library")
def test_all_candidates_compute_the_same() -> None:
    context = 70
    device = auto_select_device()
    held = {dtype: attention.caches(HEADS, context, HEADS.layers, dtype) for dtype in (np.float32, np.int8)}
    outputs = []
    for kind in KINDS:
        session, bound = attention.binding(kind, HEADS, context, held[kind.dtype], device, 1)
        session.run_with_iobinding(bound)
        outputs.append(bound.get_outputs()[0].numpy().copy())
        assert len(bound.get_outputs()) == 3 * HEADS.layers
    for output in outputs[1:]:
        # The new token's key and value are rounded to codes.
        np.testing.assert_allclose(output, outputs[0], atol=0.02)
    np.testing.assert_allclose(outputs[2], outputs[0], atol=1e-5)
    # Written in place: the last row of every cache is no longer that of the others.
    first, second = held[np.int8][0].numpy(), held[np.int8][2].numpy()
    np.testing.assert_array_equal(first, second)
    assert (first[:, :, -1] != attention.caches(HEADS, context, 1, np.int8)[0].numpy()[:, :, -1]).any()


def test_layers_that_fit() -> None:
    assert attention.SMOLLM2.measured_layers(512) == 30
    assert attention.LLAMA3.cache_bytes(8192) == 64 << 20
    assert attention.LLAMA3.measured_layers(8192) == 4


def test_without_the_library_there_is_nothing_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "auto_select_device", Device)
    with pytest.raises(OperatorError, match="no operator library"):
        attention.measure((HEADS,), (16,), (1,), 1)
