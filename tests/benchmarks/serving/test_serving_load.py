"""The load tests: what they ask, how they judge answers and memory, and short runs of both."""

from __future__ import annotations

import io
import json
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console
from tiny_package import TinyShape, write_package

from bitnet_onnx.benchmarks.serving import _load, _requests, connections, mixed_load
from bitnet_onnx.benchmarks.serving._load import Record, percentiles, run_load, summary
from bitnet_onnx.benchmarks.serving._requests import Request
from bitnet_onnx.benchmarks.serving._server import Sample, ServerProcess
from bitnet_onnx.benchmarks.serving._show import show_load
from bitnet_onnx.errors import BitnetOnnxError, InputError

needs_locust = pytest.mark.skipif(find_spec("locust") is None, reason="locust is not installed: the extra `bench`")
needs_server = pytest.mark.skipif(find_spec("uvicorn") is None, reason="the extra `serve` is not installed")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("loaded") / "tiny"
    directory.mkdir()
    # A token is a byte here, and the long prompts must fit.
    return write_package(directory, TinyShape(context_length=8192))


def test_the_mix_has_everything_and_is_repeatable() -> None:
    asked = [_requests.mixed(random) for random in [Random(1)] for _ in range(400)]
    again = [_requests.mixed(random) for random in [Random(1)] for _ in range(400)]
    assert asked == again
    assert len({request.kind for request in asked}) == 11
    assert {request.ending for request in asked} == {"read", "leave in the stream", "leave at once"}
    assert any(request.streams for request in asked)
    assert any(request.is_json for request in asked)
    bad = [request for request in asked if request.kind == "bad request"]
    assert {status for request in bad for status in request.statuses} == {400, 404, 415}
    for request in asked:
        if request not in bad:
            assert request.statuses == {200}
            assert json.loads(request.body)["max_tokens"] <= 200


ANSWER: dict[str, Any] = {
    "choices": [{"finish_reason": "stop", "message": {"content": '{"city": "Oslo", "people": 7}'}}],
    "usage": {"completion_tokens": 5},
}
REQUEST = Request("chat", "/", b"{}", is_json=True)


def _answer(**choice: object) -> bytes:
    return json.dumps(ANSWER | {"choices": [ANSWER["choices"][0] | choice]}).encode()


def test_a_right_answer() -> None:
    assert _requests.fault(REQUEST, 200, _answer()) is None
    assert _requests.fault(REQUEST, 200, _answer(finish_reason="length", message={"content": '{"ci'})) is None
    refused = Request("bad", "/", b"", frozenset({400}))
    assert _requests.fault(refused, 400, b'{"error": {"message": "no"}}') is None


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (500, b"oh", "status 500: oh"),
        (429, b"", "status 429"),
        (200, b"<html>", "another form"),
        (200, b"{}", "another form"),
        (200, _answer(finish_reason=None), "finish_reason"),
        (200, _answer(message={"content": '{"city": "Oslo"}'}), "schema"),
        (200, _answer(message={"content": "Oslo"}), "another form"),
        (200, json.dumps(ANSWER | {"usage": {"completion_tokens": 0}}).encode(), "no tokens"),
    ],
)
def test_a_wrong_answer(status: int, body: bytes, words: str) -> None:
    assert words in (_requests.fault(REQUEST, status, body) or "")


def _piece(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode()


RUNNING = _piece(choices=[{"finish_reason": None}])
STOPPED = _piece(choices=[{"finish_reason": "stop"}])
DONE = b"data: [DONE]"


def test_the_end_of_a_stream() -> None:
    assert _requests.stream_fault([RUNNING, b"", STOPPED, b"", DONE]) is None
    for lines, words in (
        ([], "ended with"),
        ([RUNNING, STOPPED], "ended with"),
        ([RUNNING, DONE], "ends of the stream"),
        ([STOPPED, STOPPED, DONE], "ends of the stream"),
        ([RUNNING, _piece(error={"message": "no"}), DONE], "an error"),
        ([b"data: {", DONE], "another form"),
    ):
        assert words in (_requests.stream_fault(lines) or ""), lines


def test_percentiles() -> None:
    assert percentiles([]) is None
    assert percentiles(range(101)) == {"p50": 50, "p95": 95, "p99": 99, "max": 100}


def test_a_summary() -> None:
    records = [
        Record(0.0, "chat", 200, 1.0, 0.5, None),
        Record(1.0, "chat", 500, 3.0, None, "status 500"),
        Record(1.0, "bad", 400, 0.1, None, None),
    ]
    found = summary(records)
    assert (found["requests"], found["failures"]) == (3, 1)
    assert found["failure_messages"] == {"status 500": 1}
    assert found["kinds"]["chat"]["statuses"] == {"200": 1, "500": 1}
    assert found["kinds"]["chat"]["seconds"]["p50"] == 2.0
    assert found["kinds"]["chat"]["first_token_s"]["max"] == 0.5
    assert found["kinds"]["bad"]["first_token_s"] is None


def _samples(sizes: list[int]) -> list[Sample]:
    return [Sample(1000.0 + second, size + 5, size, {}) for second, size in enumerate(sizes)]


def test_growth_is_that_after_the_warm_up() -> None:
    filling = _samples([10 * min(second, 20) for second in range(101)])
    found = mixed_load._memory(filling, 1000.0, filling[-1])
    assert (found["warm_up_s"], found["growth_bytes"], found["before_bytes"]) == (20, 0, 0)
    assert found["peak_bytes"] == found["at_rest_bytes"] == 200
    full = [Sample(1000.0 + s, 5, 10 * min(s, 50), {"prompt_cache_bytes": min(s, 50)}) for s in range(101)]
    found = mixed_load._memory(full, 1000.0, full[-1])
    assert (found["warm_up_s"], found["growth_bytes"], found["long_enough"]) == (48, 0, True)
    found = mixed_load._memory(full[:60], 1000.0, full[59])
    assert not found["long_enough"]
    leaking = _samples([100 * second for second in range(101)])
    found = mixed_load._memory(leaking, 1000.0, leaking[-1])
    assert found["growth_bytes"] == found["growth_outside_the_pool_bytes"] == 6000


@needs_locust
@needs_server
def test_a_short_mixed_load(package: Path, tmp_path: Path) -> None:
    out, plot = tmp_path / "load.json", tmp_path / "load.svg"
    arguments = ["--package", str(package), "--minutes", "0.07", "--users", "4", "--max-batch", "4", "--idle", "0.5"]
    arguments += ["--out", str(out)] + (["--plot", str(plot)] if find_spec("matplotlib") else [])
    result = CliRunner().invoke(mixed_load.main, arguments)
    assert result.exit_code == 0, result.output
    assert "tokens/s" in result.output
    report = json.loads(out.read_text())
    assert report["benchmark"] == "serving_mixed_load"
    assert report["load"]["requests"] > 4
    assert report["load"]["failures"] == 0
    assert report["server"]["exit_status"] == 0
    assert report["throughput"]["generated_tokens_per_s"] > 0
    assert len(report["timeline"]) >= 4
    assert str(tmp_path) not in out.read_text()
    if find_spec("matplotlib"):
        assert plot.read_text().count("<path") > 20


@needs_locust
@needs_server
def test_more_connections_than_slots(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_IDLE_S", 0.5)
    settings = connections.Connections(users=24, seconds=3, max_batch=2, max_queue=4)
    report = connections.run(package, settings)
    show_load(report, Console(file=io.StringIO()))
    load: Any = report.facts["load"]
    assert load["failures"] == 0
    assert set(load["kinds"]["simple"]["statuses"]) <= {"200", "429"}
    assert load["kinds"]["simple"]["statuses"]["200"] > 4
    assert report.facts["health_failures"] == []
    assert isinstance(report.facts["health_checks"], int)
    assert report.facts["health_checks"] > 10


@needs_locust
def test_failures_are_counted(tmp_path: Path) -> None:
    records = run_load("http://127.0.0.1:9", "CrowdUser", users=1, seconds=1)
    assert records
    assert all(record.failure is not None and "refused" in record.failure for record in records)


@needs_server
def test_a_server_that_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(BitnetOnnxError, match=r"did not start: .*not a bitnet-onnx package"):
        ServerProcess(tmp_path)


def test_without_locust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_load, "find_spec", lambda _: None)
    for run in (
        lambda: mixed_load.run(tmp_path, mixed_load.MixedLoad()),
        lambda: connections.run(tmp_path, connections.Connections()),
    ):
        with pytest.raises(InputError, match="pip install 'bitnet-onnx\\[bench\\]'"):
            run()
