"""Files of statistics that lie are refused in one line, before much is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from bitnet_onnx.calibration import open_statistics
from bitnet_onnx.errors import InputError

ROLE = "layers.0.attn.o_proj"
FORMAT = "bitnet-onnx statistics 1"


def _parts() -> tuple[dict[str, np.ndarray], dict[str, str]]:
    tensors = {
        f"{ROLE}.peak": np.ones(8, np.float32),
        f"{ROLE}.mean": np.zeros(8, np.float32),
        f"{ROLE}.sample": np.zeros((2, 8), np.float32),
        f"{ROLE}.moment.0": np.eye(4, dtype=np.float32),
        f"{ROLE}.moment.1": np.eye(4, dtype=np.float32),
        "kv.key_peak": np.ones((1, 2, 4), np.float32),
        "kv.value_peak": np.ones((1, 2, 4), np.float32),
    }
    metadata = {"format": FORMAT, "roles": json.dumps({ROLE: ROLE}), "input_tokens": json.dumps({ROLE: 7})}
    return tensors, metadata


def _write(path: Path, change: Callable[[dict[str, np.ndarray], dict[str, str]], object]) -> Path:
    tensors, metadata = _parts()
    change(tensors, metadata)
    save_file(tensors, path, metadata)
    return path


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    found = open_statistics(_write(tmp_path / "stats", lambda tensors, metadata: None))
    one = found.of(ROLE)
    assert one is not None
    assert (one.tokens, one.features, [len(block) for block in one.moment]) == (7, 8, [4, 4])
    assert found.of("layers.0.attn.q_proj") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, metadata: metadata.pop("format"), "format is None, expected 'bitnet-onnx statistics 1'"),
        (lambda tensors, metadata: metadata.update(format="other"), "format is 'other'"),
        (lambda tensors, metadata: metadata.pop("roles"), "metadata roles is not a JSON object of str"),
        (lambda tensors, metadata: metadata.update(roles="[" * 50_000), "metadata roles is not"),
        (lambda tensors, metadata: metadata.update(roles='{"a": 1}'), "metadata roles is not"),
        (lambda tensors, metadata: metadata.update(input_tokens='{"a": true}'), "metadata input_tokens is not"),
        (lambda tensors, metadata: metadata.update(roles='{"a": "absent"}'), "tensor absent.peak is missing"),
        (lambda tensors, metadata: metadata.update(sensitivity="[{}]"), "table of sensitivities is malformed"),
        (lambda tensors, metadata: tensors.pop("kv.key_peak"), "tensor kv.key_peak is missing"),
        (lambda tensors, metadata: tensors.pop(f"{ROLE}.moment.0"), "moment in blocks of"),
        (lambda tensors, metadata: tensors.update({f"{ROLE}.peak": np.ones(8)}), "o_proj.peak is F64"),
        (
            lambda tensors, metadata: tensors.update({f"{ROLE}.peak": np.ones(9, np.float32)}),
            "statistics of 8 features",
        ),
        (lambda tensors, metadata: tensors.update({f"{ROLE}.mean": np.full(8, np.nan, np.float32)}), "holds NaN"),
        (lambda tensors, metadata: tensors.update({f"{ROLE}.sample": np.ones(8, np.float32)}), "expected F32 of 2"),
    ],
)
def test_a_file_that_lies_is_refused(
    tmp_path: Path, change: Callable[[dict[str, np.ndarray], dict[str, str]], object], message: str
) -> None:
    path = _write(tmp_path / "stats", change)
    with pytest.raises(InputError, match=message) as caught:
        open_statistics(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"\xff" * 64, (1 << 60).to_bytes(8, "little") + b"{}"])
def test_what_is_no_file_of_tensors_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "stats"
    path.write_bytes(data)
    with pytest.raises(InputError, match="not a file of statistics"):
        open_statistics(path)
