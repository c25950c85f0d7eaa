"""`bitnet-onnx benchmark model` and the processes it starts."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from bitnet_onnx.benchmarks import _worker
from bitnet_onnx.benchmarks._process import Job, Worker, llama_version
from bitnet_onnx.benchmarks.model import ModelSettings, measure
from bitnet_onnx.errors import BitnetOnnxError, InputError


def test_quick(benchmark, checked, tiny_package: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.json"
    result = benchmark("model", tiny_package, "--quick", "--threads", "1", "--out", out)
    assert (result.status, result.err) == (0, "")
    for text in ("stock ONNX Runtime", "bitnet behind 32 tokens", "package: 0.", "memory of bitnet, 1 threads"):
        assert text in result.out
    report = checked(out, "model")
    cases = {comparison["case"]: comparison for comparison in report["comparisons"]}
    assert cases.keys() == {"prefill 8", "decode", "process start to first token", "load"}
    assert cases["prefill 8"]["candidates"].keys() == {"bitnet", "stock ONNX Runtime"}
    assert cases["decode"]["candidates"]["bitnet behind 32 tokens"]["tokens_per_s"] > 0
    files = report["package"]["files"]
    assert report["package"]["bytes"] == sum(files.values())
    assert files["model.onnx.data"] == (tiny_package / "model.onnx.data").stat().st_size
    assert {entry["candidate"] for entry in report["memory"]} == {"bitnet", "stock ONNX Runtime"}
    assert report["settings"]["package"] == "tiny"
    # A report may be published: no path of the machine is in it.
    assert str(tmp_path) not in out.read_text()


@pytest.mark.usefixtures("llama_stand_in")
def test_a_gguf_file_is_a_peer(benchmark, checked, tiny_package: Path, tmp_path: Path) -> None:
    gguf, out = tmp_path / "peer.gguf", tmp_path / "model.json"
    gguf.touch()
    arguments = ("--no-stock", "--gguf", gguf, "--rounds", "1", "--threads", "1", "--out", out)
    result = benchmark("model", tiny_package, "--quick", *arguments)
    assert (result.status, result.err) == (0, "")
    report = checked(out, "model")
    assert report["peers"] == {"llama-cpp-python": "0.0.stand-in"}
    for comparison in report["comparisons"]:
        assert "llama.cpp peer.gguf" in comparison["candidates"]
    assert str(tmp_path) not in out.read_text()


@pytest.mark.usefixtures("llama_stand_in")
def test_a_peer_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(BitnetOnnxError, match=r"^peer: its process ended with status 1: .*cannot load .*bad\.gguf"):
        Worker(Job("peer", "llama", tmp_path / "bad.gguf"), 1, 8)
    with pytest.raises(BitnetOnnxError, match="cannot make a context of 1048576 tokens"):
        Worker(Job("peer", "llama", tmp_path / "good.gguf"), 1, 1 << 20)


@pytest.mark.usefixtures("llama_stand_in")
def test_a_peer_that_fails_later(tmp_path: Path) -> None:
    with Worker(Job("peer", "llama", tmp_path / "good.gguf"), 1, 8) as worker:
        assert worker.decode(4, 4) >= 0
        with pytest.raises(BitnetOnnxError, match=r"llama\.cpp failed on 9 tokens"):
            worker.prefill(9)
        with pytest.raises(BitnetOnnxError, match="its process ended"):
            worker.prefill(1)


def test_a_peer_that_is_not_there(benchmark, tiny_package: Path, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").touch()
    arguments = ("model", tiny_package, "--quick", "--gguf", tmp_path / "x.gguf", "--llama-python")
    if llama_version(sys.executable) is None:
        result = benchmark(*arguments, sys.executable)
        assert result.status == 2
        assert "has no llama-cpp-python: install it there, or name another interpreter" in result.err
    result = benchmark(*arguments, tmp_path / "no-python")
    assert result.status == 2
    assert "cannot be run: No such file" in result.err
    with pytest.raises(InputError, match="name a Python interpreter"):
        llama_version(str(tmp_path))


def test_what_is_no_package(benchmark, tmp_path: Path) -> None:
    result = benchmark("model", tmp_path)
    assert result.status == 2
    assert "is not a bitnet-onnx package" in result.err


def test_a_context_that_is_too_short(tiny_package: Path) -> None:
    with pytest.raises(InputError, match="its context of 128 tokens is shorter than the benchmark needs"):
        measure(tiny_package, ModelSettings(prefill_tokens=129))


def test_a_broken_package_ends_in_one_line(benchmark, tiny_package: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in tiny_package.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    for graph in ("model.onnx", "engine.onnx"):
        (broken / graph).write_bytes(b"garbage")
    result = benchmark("model", broken, "--quick")
    assert result.status == 1
    assert result.err.startswith("error: bitnet: its process ended with status 1: ")
    assert "cannot open it" in " ".join(result.err.split())


def test_steps_come_back_to_where_they_began(tiny_package: Path) -> None:
    backend = _worker.Package(str(tiny_package), 1, stock=True)
    assert backend.load_s > 0
    # More rounds than the context of 128 holds tokens.
    for _ in range(10):
        assert backend.decode(96, 16) > 0
        assert backend.prefill(64) > 0
    assert {context: cache.length for context, cache in backend._caches.items()} == {96: 96, 0: 0}


def test_the_worker_itself(tiny_package: Path, monkeypatch, capsys) -> None:
    requests = [{"run": "prefill", "tokens": 4}, {"run": "decode", "context": 2, "tokens": 3}, {"run": "memory"}]
    monkeypatch.setattr("sys.argv", ["_worker.py", "package", str(tiny_package), "1", "64"])
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(json.dumps(request) + "\n" for request in requests)))
    _worker.main()
    ready, prefill, decode, memory = map(json.loads, capsys.readouterr().out.splitlines())
    assert ready["load_s"] > 0
    assert prefill["seconds"] > 0
    assert decode["seconds"] > 0
    if sys.platform == "linux":
        assert memory["peak_bytes"] >= memory["anonymous_bytes"] > 1 << 20


def test_the_worker_with_the_peer(llama_stand_in: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.syspath_prepend(llama_stand_in)
    monkeypatch.delitem(sys.modules, "llama_cpp", raising=False)
    requests = [{"run": "prefill", "tokens": 8}, {"run": "decode", "context": 2, "tokens": 6}]
    monkeypatch.setattr("sys.argv", ["_worker.py", "llama", str(tmp_path / "any.gguf"), "1", "8"])
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(json.dumps(request) + "\n" for request in requests)))
    _worker.main()
    ready, prefill, decode = map(json.loads, capsys.readouterr().out.splitlines())
    assert ready["load_s"] >= 0
    assert prefill["seconds"] > 0
    assert decode["seconds"] > 0
    # The last run left its context and its steps, and nothing of the runs before.
    assert sys.modules["llama_cpp"].read == _worker.prompt(2, 512) + _worker.prompt(6, 512)
    for name, context, message in (("bad", 8, "cannot load"), ("good", 1 << 20, "cannot make a context")):
        with pytest.raises(RuntimeError, match=message):
            _worker.Llama(str(tmp_path / f"{name}.gguf"), 1, context)
    with pytest.raises(RuntimeError, match="failed on 9 tokens"):
        _worker.Llama(str(tmp_path / "good.gguf"), 1, 8).prefill(9)
    monkeypatch.delitem(sys.modules, "llama_cpp")


def test_memory_on_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_worker.Path, "is_file", lambda self: False)
    monkeypatch.setattr("sys.platform", "win32")
    assert _worker.memory() == {"peak_bytes": None, "anonymous_bytes": None}


def test_prompts_are_spread_over_the_vocabulary() -> None:
    ids = _worker.prompt(256, 49152)
    assert len(set(ids)) == 256
    assert all(0 <= token < 49152 for token in ids)
    assert max(_worker.prompt(16, 5)) < 5
