"""What can be told of clusters without one: options, addresses, shares, blocks of lines, a replica's health."""

from __future__ import annotations

import importlib.util
import io
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_package import write_package

from bitnet_onnx.cli import _ray
from bitnet_onnx.errors import BitnetOnnxError, InputError
from bitnet_onnx.runtime.engine.engine import Engine, EngineSettings
from bitnet_onnx.runtime.engine.request import EngineRequest
from bitnet_onnx.runtime.offline import PromptLine, read_lines, salt_of, write_answers
from bitnet_onnx.runtime.package import PackageInfo
from bitnet_onnx.runtime.prompts import PromptEncoder
from bitnet_onnx.runtime.sampling import SamplingParameters
from bitnet_onnx.runtime.server.auth import ApiKeys
from bitnet_onnx.runtime.server.prometheus import ServerMetrics, labelled
from bitnet_onnx.runtime.server.settings import ServerSettings

if importlib.util.find_spec("ray") is None:
    pytest.skip("Ray is not installed: it has no wheels for this Python here", allow_module_level=True)

from bitnet_onnx.runtime.cluster import batch, metrics, placement, serving, session


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--ray-address", "auto"), "--ray-address belongs to --ray"),
        (("--replicas", "2"), "--replicas belongs to --ray"),
        (("--ray", "--replicas", "0"), "--replicas is '0', expected a number from 1, or two as 1:4"),
        (("--ray", "--replicas", "3:2"), "--replicas is '3:2'"),
        (("--ray", "--replicas", "many"), "--replicas is 'many'"),
        (("--ray", "--ray-address", "somewhere"), "'somewhere' is neither auto nor HOST:PORT"),
        (("--ray", "--ray-address", "ray://host:10001"), "neither auto nor HOST:PORT"),
        (("--ray", "--ray-address", "host:99999"), "neither auto nor HOST:PORT"),
        (("--ray", "--ray-address", "127.0.0.1:PORT"), "no Ray cluster answers there: Connection refused"),
    ],
)
@pytest.mark.parametrize("command", ["serve", "infer"])
def test_wrong_options(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, command: str, options: tuple[str, ...], words: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = str(taken.getsockname()[1])
        package = write_package(tmp_path)
        arguments = [command, str(package), *(option.replace("PORT", port) for option in options)]
        if command == "infer":
            (tmp_path / "in").write_text("")
            arguments += ["--batch", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
        from bitnet_onnx.cli import main

        with pytest.raises(SystemExit) as caught:
            main(arguments)
    (line,) = capfd.readouterr().err.splitlines()
    assert caught.value.code == 2
    assert words in line.replace(port, "PORT") if port in line else words in line


def test_infer_with_ray_answers_files_only(capfd: pytest.CaptureFixture[str]) -> None:
    from bitnet_onnx.cli import main

    with pytest.raises(SystemExit) as caught:
        main(["infer", "package", "--prompt", "a", "--ray"])
    assert caught.value.code == 2
    assert "--ray belongs to --batch" in capfd.readouterr().err


def test_an_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else found(name))
    with pytest.raises(InputError, match=r"--ray needs ray, which is not installed: pip install 'bitnet-onnx\[ray\]'"):
        _ray.on_ray(True, None, None)
    assert _ray.on_ray(False, None, None) is None


def nodes_of(*cpus: int) -> list[session.Node]:
    return [session.Node(f"n{number}", "10.0.0.1", count) for number, count in enumerate(cpus)]


@pytest.mark.parametrize(
    ("cpus", "replicas", "threads", "share"),
    [
        ((8,), 1, None, placement.Share(8, None, 1000)),
        ((8,), 1, 3, placement.Share(8, 3, 1000)),
        ((8,), 3, None, placement.Share(2, 2, 250)),
        ((8, 8), 2, None, placement.Share(8, None, 1000)),
        ((8, 8), 3, None, placement.Share(4, 4, 500)),
        ((4, 16), 2, None, placement.Share(4, 4, 250)),
    ],
)
def test_shares_of_machines(cpus: tuple[int, ...], replicas: int, threads: int | None, share: placement.Share) -> None:
    assert placement._share(nodes_of(*cpus), [1000] * len(cpus), replicas, threads, None) == share
    fixed = placement._share(nodes_of(*cpus), [1000] * len(cpus), replicas, threads, 77)
    assert fixed.memory_bytes == 77


def test_more_replicas_than_cpus() -> None:
    with pytest.raises(InputError, match="5 replicas on 2 nodes, but one of them has 2 CPUs"):
        placement._share(nodes_of(2, 4), [1, 1], 5, None, None)


@given(
    data=st.lists(st.sampled_from([b"a", b"bb", b"", b" ", b"c" * 40]), max_size=60).map(b"\n".join),
    skipped=st.integers(0, 5),
    most=st.integers(1, 7),
    limit=st.integers(1, 4),
)
def test_blocks_hold_the_lines_of_the_file(data: bytes, skipped: int, most: int, limit: int) -> None:
    expected = list(read_lines(io.BytesIO(data)))[skipped:]
    file = io.BytesIO(data)
    lines = read_lines(file)
    number = 0
    for _ in range(skipped):
        number = getattr(next(lines, None), "number", number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "_MAX_BLOCKS", limit)
        patch.setattr(batch, "_BLOCK_BYTES", 50)
        blocks = batch.find_blocks(file, number, most)
    assert len(blocks) <= limit + 1
    found: list[PromptLine] = []
    for block in blocks:
        file.seek(block.start)
        part = [line for _, line in zip(range(block.count), read_lines(file, block.number), strict=False)]
        assert file.tell() == block.start + block.nbytes
        found += part
    assert found == expected


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.write_bytes(b"one\ntwo\n")
    with source.open("rb") as file:
        (block,) = batch.find_blocks(file, 0, 10)
    (table,) = batch._read_block(source, block)
    assert table.to_pydict() == {"number": [1, 2], "data": [b"one", b"two"]}
    for changed in (b"one\n", b"one\ntw\n", b"one\ntwo and\n"):
        source.write_bytes(changed)
        with pytest.raises(BitnetOnnxError, match="was changed while it was read"):
            batch._read_block(source, block)


def test_an_engine_answers_blocks_as_it_answers_a_file(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    write_package(package)
    source, out = tmp_path / "in", tmp_path / "out"
    source.write_text('{"prompt": "abc"}\n\n{"prompt": 5}\n{"id": 7, "prompt": [1, 2], "temperature": 1.5}\n')
    parameters = SamplingParameters(max_new_tokens=9, seed=4)
    settings = EngineSettings(max_batch=2)
    with Engine.open(package, settings, threads=1) as engine:
        prompts = PromptEncoder(PackageInfo.open(package))
        report = write_answers(engine, prompts, source, out, parameters, salt=b"package")
    share = placement.Share(1, 1, 1 << 28)
    work = batch._Work(str(package), settings, share, parameters, salt_of(b"package", parameters))
    actor = batch._EngineActor(work)
    with source.open("rb") as file:
        blocks = batch.find_blocks(file, 0, 2)
    tables = [actor(table) for block in blocks for table in batch._read_block(source, block)]
    actor._engine.close()
    assert len(tables) == 2
    rows = [row for table in tables for row in table.to_pylist()]
    assert b"".join(row["data"] for row in rows) == out.read_bytes()
    assert [row["number"] for row in rows] == [1, 3, 4]
    assert sum(row["failed"] for row in rows) == report.failed == 1
    assert sum(row["generated"] for row in rows) == report.generated_tokens
    tasks = batch._Lines(source, blocks)
    assert tasks.estimate_inmemory_data_size() == len(source.read_bytes())
    assert [table for task in tasks.get_read_tasks(1) for table in task()] == [
        table for block in blocks for table in batch._read_block(source, block)
    ]


def test_a_board_forgets_who_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now)
    board = metrics._Board()
    board.tell("a", b"1")
    now = 105.0
    board.tell("b", b"2")
    assert board.told() == {"a": b"1", "b": b"2"}
    now = 112.0
    assert board.told() == {"b": b"2"}


def test_why_replicas_do_not_start_is_one_line() -> None:
    message = "Traceback:\n  File x\nbitnet_onnx.errors.PackageError: /p: no such directory\n\nmore"
    assert serving._reason(["The deployment failed", message]) == "/p: no such directory"
    assert serving._reason(["", "out of\nmemory"]) == "out of memory"


def test_errors_of_ours_come_out_of_rays() -> None:
    from ray.exceptions import RayTaskError

    inner = RayTaskError("f", "traceback", BitnetOnnxError("ends before line 3: fire"))
    outer = RuntimeError("many\nlines")
    outer.__cause__ = inner
    assert str(batch._own(outer)) == "ends before line 3: fire"
    assert str(batch._own(RuntimeError("many\nlines"))) == "Ray: many"


def test_a_replica_whose_engine_has_died_is_not_healthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="one"))
    monkeypatch.setattr(serving.serve, "get_replica_context", lambda: context)
    monkeypatch.setattr(serving, "ReplicaMetrics", lambda engine, name, board, replica: ServerMetrics(engine, name))
    served = serving.Serving(ServerSettings("tiny"), ApiKeys(), EngineSettings())
    replica = serving._Replica(str(write_package(tmp_path)), placement.Share(1, 1, 1 << 28), served, None)
    try:
        replica.check_health()
        assert replica.__serve_build_asgi_app__() is replica._opened.app

        def step() -> bool:
            raise RuntimeError("the machine is on fire")

        monkeypatch.setattr(replica._opened.engine, "step", step)
        assert "fire" in str(replica._opened.engine.submit(EngineRequest((1,))).result(30).finished.error)
        with pytest.raises(BitnetOnnxError, match="the engine has failed"):
            replica.check_health()
    finally:
        replica.__del__()


def test_metrics_of_replicas_are_told_apart(tmp_path: Path) -> None:
    with Engine.open(write_package(tmp_path), threads=1) as engine:
        one, two = ServerMetrics(engine, "tiny"), ServerMetrics(engine, "tiny")
        one.count("/health", 200, 0.1)
        text = labelled("replica", {"a": one.text(), "b": two.text()}).decode()
    assert 'bitnet_onnx_http_responses_total{path="/health",replica="a",status="200"} 1.0\n' in text
    assert 'bitnet_onnx_healthy{replica="a"} 1.0\nbitnet_onnx_healthy{replica="b"} 1.0\n' in text
    assert 'bitnet_onnx_first_token_seconds_bucket{le="+Inf",replica="b"} 0.0\n' in text
    assert text.count("# TYPE bitnet_onnx_generated_tokens_total counter") == 1
