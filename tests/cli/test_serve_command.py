"""`bitnet-onnx serve` as a process."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from bounded_command import run_bounded
from tiny_package import write_package

from bitnet_onnx.cli import main
from bitnet_onnx.runtime import Device
from bitnet_onnx.runtime.kv_calibration import write_kv_scales

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to send")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("served") / "tiny"
    directory.mkdir()
    return write_package(directory)


@contextmanager
def serving(package: Path, *options: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its address."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "bitnet_onnx", "serve", str(package), "--port", "0", "--threads", "1", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"NO_COLOR": "1", "COLUMNS": "200"} | environment,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise AssertionError(process.communicate()[1])
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.communicate()


def wait_until_up(address: str) -> None:
    ends = time.monotonic() + 30
    while True:
        try:
            assert httpx2.get(f"{address}/health").status_code == 200
            return
        except httpx2.TransportError:
            assert time.monotonic() < ends
            time.sleep(0.05)


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_from_beginning_to_end(package: Path, number: signal.Signals) -> None:
    with serving(package, "--max-batch", "2", "--memory", "512MiB") as (process, address):
        assert address.startswith("http://127.0.0.1:")
        wait_until_up(address)
        assert httpx2.get(f"{address}/v1/models").json()["data"][0]["id"] == "tiny"
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "temperature": 0}
        answer = httpx2.post(f"{address}/v1/chat/completions", json=body).json()
        assert answer["usage"]["completion_tokens"] == 3
        assert "bitnet_onnx_memory_budget_bytes 5.36870912e+08" in httpx2.get(f"{address}/metrics").text
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "", "")


def test_keys_and_values_as_int8(package: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(package, own)
    write_kv_scales(own, device=Device(), tokens=64, threads=1)
    body = {"prompt": "abc" * 25, "max_tokens": 3, "temperature": 0}
    held = []
    for kv in ("float32", "int8"):
        with serving(own, "--kv", kv) as (_, address):
            wait_until_up(address)
            assert httpx2.post(f"{address}/v1/completions", json=body).json()["usage"]["completion_tokens"] == 3
            metrics = httpx2.get(f"{address}/metrics").text
            held.append(float(re.findall(r'^bitnet_onnx_memory_bytes{owner="prompt cache"} (.*)$', metrics, re.M)[0]))
    # A block of 64 tokens, two layers, two heads of 16 features.
    assert held == [64 * 512, 64 * 128]


def test_keys_and_name(package: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("key-of-alice-1\n", encoding="utf-8")
    keys.chmod(0o600)
    options = ("--api-key-file", str(keys), "--model-name", "mine")
    with serving(package, *options, BITNET_ONNX_API_KEYS="key-of-bob-22") as (_, address):
        wait_until_up(address)
        assert httpx2.get(f"{address}/v1/models").status_code == 401
        for key in ("key-of-alice-1", "key-of-bob-22"):
            response = httpx2.get(f"{address}/v1/models", headers={"Authorization": f"Bearer {key}"})
            assert response.json()["data"][0]["id"] == "mine"


def test_a_taken_port_is_one_line(package: Path, tmp_path: Path) -> None:
    with serving(package) as (_, address):
        port = address.rpartition(":")[2]
        ended = run_bounded("serve", package, "--port", port, folder=tmp_path)
    assert ended.status == 2
    assert ended.err.startswith(f"error: 127.0.0.1:{port}: cannot listen there")
    assert len(ended.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--memory", "much"], "much"),
        (["--memory", "1KiB"], ""),
        (["--max-batch", "0"], "max_batch is 0"),
        (["--max-queue", "0"], "max_queue is 0"),
        (["--port", "70000"], "70000"),
        (["--host", "no.such.host.invalid"], "cannot listen there"),
        (["--model-name", "a\nb"], "printable"),
        (["--api-key-file", "missing"], "missing: cannot be read"),
    ],
)
def test_bad_options_are_one_line(
    package: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as raised:
        main(["serve", str(package), "--port", "0", *options])
    captured = capsys.readouterr()
    assert raised.value.code in (1, 2)
    assert words in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


def test_no_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["serve", str(tmp_path)])
    assert raised.value.code == 2
    assert "not a bitnet-onnx package" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn", "prometheus_client", "pydantic", "llguidance"])
def test_without_the_extra(
    package: Path, missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit) as raised:
        main(["serve", str(package)])
    assert raised.value.code == 2
    line = " ".join(capsys.readouterr().err.split())
    assert line == f"error: serve needs {missing}, which is not installed: pip install 'bitnet-onnx[serve]'"


def test_other_commands_load_nothing_of_the_server() -> None:
    script = (
        "import sys\n"
        "import bitnet_onnx.cli.infer, bitnet_onnx.cli.serve, bitnet_onnx.api\n"
        "print({'fastapi', 'starlette', 'pydantic', 'uvicorn', 'prometheus_client'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("set()", "")
