"""Whether a package fits is known before it is written, and it is refused only when it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bitnet_onnx.converters import convert
from bitnet_onnx.converters.model import SourceModel, open_model
from bitnet_onnx.converters.onnx import _space
from bitnet_onnx.converters.onnx._space import check_space
from bitnet_onnx.errors import PackageError
from bitnet_onnx.policy import Policy, Precision, Weights
from bitnet_onnx.quantized import TERNARY, QuantizedTensor


def fits(model: SourceModel, policy: Policy, free: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(_space, "free_bytes", lambda _: free)
    try:
        check_space(Path("a", "b"), model.spec, model.tensors, policy)
    except PackageError:
        return False
    return True


def test_the_refusal_is_one_line(tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_space, "free_bytes", lambda _: 10)
    with open_model(tiny_checkpoint("bitnet")) as model, pytest.raises(PackageError) as caught:
        check_space(Path("a", "b"), model.spec, model.tensors, Policy())
    assert str(caught.value) == (
        "a: the package takes more than the 10 bytes that are free there; "
        "free some space, or choose another output or a smaller precision"
    )


@pytest.mark.parametrize("name", ["untied_gqa", "tied_mha", "bitnet"])
@pytest.mark.parametrize("weights", list(Weights))
def test_the_estimate_is_what_the_matrices_take(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, weights: Weights
) -> None:
    policy = Policy(Precision(weights))
    package = convert(tiny_checkpoint(name), tmp_path / "package", policy=policy)
    with open_model(tiny_checkpoint(name)) as model:
        sizes = range(0, 2 * package.data_bytes + 100_000, 1000)
        least = next(size for size in sizes if fits(model, policy, size, monkeypatch))
        assert fits(model, policy, package.data_bytes + package.graph_bytes, monkeypatch)
    # Alignment, rotary tables and the padding of narrow matrices make the difference in a model so small.
    assert 0.4 * package.data_bytes < least <= package.data_bytes + package.graph_bytes


class Stored:
    """Tensors in codes."""

    def quantized(self, role: str) -> QuantizedTensor:
        return QuantizedTensor(np.full((64, 64), 2, np.uint8), np.ones(1, np.float32), TERNARY)

    def is_master(self, role: str) -> bool:
        return False

    def shape(self, role: str) -> tuple[int, ...]:
        return (64, 64)


def test_codes_stay_what_they_are(tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    class Spec:
        def matrices(self) -> list[tuple[str, tuple[int, int]]]:
            return [("layers.0.mlp.up_proj", (64, 64))]

    for weights, size in ((Weights.AUTO, 1024), (Weights.KEEP, 1024), (Weights.INT8, 4096)):
        for free in (size - 1, size):
            monkeypatch.setattr(_space, "free_bytes", lambda _, free=free: free)
            try:
                check_space(Path("a", "b"), Spec(), Stored(), Policy(Precision(weights, 0)))  # type: ignore[arg-type]
                assert free == size
            except PackageError:
                assert free < size
