"""The profile of a decode step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from bitnet_onnx.benchmarks import profile_step
from bitnet_onnx.errors import InputError


def event(name: str, start: int, duration: int, op_name: str = "", cat: str = "Node") -> dict[str, object]:
    return {"name": name, "ts": start, "dur": duration, "cat": cat, "args": {"op_name": op_name}}


def test_summing_up() -> None:
    events = [
        event("session_initialization", 0, 50, cat="Session"),
        event("model_run", 100, 1000, cat="Session"),
        event("/model/layers.0/attn/o_proj/BitLinear_kernel_time", 110, 900, "BitLinear"),
        # Traces are not sorted by time.
        event("/model/layers.1/attn/o_proj/BitLinear_kernel_time", 2050, 30, "BitLinear"),
        event("/model/layers.0/attn/o_proj/BitLinear_fence_before", 2005, 7, "BitLinear"),
        event("/model/layers.0/attn/o_proj/BitLinear_kernel_time", 2010, 30, "BitLinear"),
        event("/model/layers.0/attn/Add_kernel_time", 2090, 20, "Add"),
        event("model_run", 2000, 100, cat="Session"),
    ]
    found = profile_step.summarize(events, skip=1)
    assert found.step_us == 100
    assert [(e.name, e.microseconds, e.calls, e.share) for e in found.operators] == [
        ("BitLinear", 60, 2, 0.6),
        ("Add", 20, 1, 0.2),
        (profile_step.BETWEEN, 20, 0, 0.2),
    ]
    assert found.layers[0].name == "/model/layers/attn/o_proj/BitLinear"
    # Means of two steps.
    assert profile_step.summarize(events, skip=0).step_us == 550
    assert profile_step.summarize(events, skip=0).operators[0].microseconds == 480


@pytest.mark.parametrize("stock", [False, True])
def test_a_package(tiny_package: Path, tmp_path: Path, stock: bool) -> None:
    out = tmp_path / "results" / "profile.json"
    arguments = [str(tiny_package), "--steps", "2", "--threads", "1", "--context", "16", "--out", str(out)]
    result = CliRunner().invoke(profile_step.main, [*arguments, *(["--stock"] if stock else [])])
    assert result.exit_code == 0, result.output
    assert "GroupQueryAttention" in result.output
    report = json.loads(out.read_text())
    assert report["machine"]["onnxruntime"]
    assert report["step_us"] > 0
    for part in ("operators", "layers"):
        assert sum(entry["share"] for entry in report[part]) == pytest.approx(1)
        assert sum(entry["us"] for entry in report[part]) == pytest.approx(report["step_us"])
    calls = {entry["name"]: entry["calls"] for entry in report["operators"]}
    assert calls["GroupQueryAttention"] == 2
    assert str(tmp_path) not in out.read_text()


def test_the_first_line_is_told_without_a_file(tiny_package: Path) -> None:
    result = CliRunner().invoke(profile_step.main, [str(tiny_package), "--steps", "1", "--threads", "1"])
    assert result.exit_code == 0
    assert "one step: " in result.output


def test_a_context_beyond_the_models(tiny_package: Path) -> None:
    with pytest.raises(InputError, match="do not fit the model's context of 128"):
        profile_step.profile(tiny_package, threads=1, context=128, steps=1)
