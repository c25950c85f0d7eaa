"""A tiny synthetic package, the command line, and an interpreter whose llama.cpp is a stand-in."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bitnet_onnx.benchmarks._synthetic import write_random_package
from bitnet_onnx.benchmarks.shape import SHAPES
from bitnet_onnx.cli import main
from bitnet_onnx.custom_ops import library_path

#: What `_worker.py` calls of llama-cpp-python; it "decodes" by counting tokens, and refuses the file `bad.gguf`.
STAND_IN = """
import ctypes
__version__ = "0.0.stand-in"
llama_token = ctypes.c_int32
read = []
class Parameters: pass
def llama_backend_init(): pass
def llama_model_default_params(): return Parameters()
def llama_context_default_params(): return Parameters()
def llama_model_load_from_file(path, parameters): return not path.endswith(b"bad.gguf")
def llama_init_from_model(model, parameters): return parameters.n_ctx < 1 << 20 and parameters
def llama_model_get_vocab(model): return model
def llama_vocab_n_tokens(vocab): return 512
def llama_get_memory(context): return context
def llama_memory_clear(memory, data): read.clear()
def llama_batch_get_one(tokens, count): return list(tokens)[:count]
def llama_decode(context, batch):
    read.extend(batch)
    return len(read) > context.n_ctx
def llama_get_logits_ith(context, index): return None
"""


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str


@pytest.fixture
def benchmark(capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs `bitnet-onnx benchmark ...` in this process."""

    def call(*arguments: str | Path) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(["benchmark", *map(str, arguments)])
        out, err = capfd.readouterr()
        assert isinstance(caught.value.code, int)
        return Result(caught.value.code, out, err)

    return call


@pytest.fixture(scope="session")
def tiny_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    package = tmp_path_factory.mktemp("synthetic") / "tiny"
    write_random_package(SHAPES["tiny"].spec, package, "tiny")
    return package


@pytest.fixture
def llama_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Processes started in this test find a `llama_cpp` that loads anything; it lies in the folder returned."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "llama_cpp.py").write_text(STAND_IN)
    inherited = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *([inherited] if inherited else [])]))
    return folder


@pytest.fixture
def needs_library() -> None:
    if library_path() is None:
        pytest.skip("the operator library is not built: no C++17 compiler when bitnet-onnx was installed")


def check_report(path: Path, benchmark: str) -> dict[str, Any]:
    """A report has everything that a reader needs, and nothing that is not positive."""
    report: dict[str, Any] = json.loads(path.read_text())
    assert report["benchmark"] == benchmark
    assert report["machine"].keys() >= {
        "processor",
        "flags",
        "cores",
        "onnxruntime",
        "operator_library",
        "memory_bytes",
    }
    assert report["notes"]
    assert report["comparisons"]
    for comparison in report["comparisons"]:
        assert "bitnet" in comparison["candidates"]
        for candidate in comparison["candidates"].values():
            seconds = candidate["seconds"]
            assert 0 < seconds["min"] <= seconds["median"] <= seconds["max"]
            assert sorted(seconds["rounds"])[0] == seconds["min"]
            assert candidate["ratio_to_ours"] > 0
        assert comparison["candidates"]["bitnet"]["ratio_to_ours"] == 1
    return report


@pytest.fixture
def checked() -> Callable[[Path, str], dict[str, Any]]:
    return check_report
