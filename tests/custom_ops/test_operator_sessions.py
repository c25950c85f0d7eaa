"""Threads, sessions and processes: none of them changes a bit."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from bitnet_onnx.bitlinear import bitlinear
from bitnet_onnx.custom_ops import library_path, library_version

# Registers the library for two sessions, runs one and saves its result.
CHILD = """
import sys
import numpy as np
import onnxruntime as ort
every = [ort.SessionOptions() for _ in range(2)]
for options in every:
    options.register_custom_ops_library(sys.argv[1])
session = ort.InferenceSession(sys.argv[2], every[0], providers=["CPUExecutionProvider"])
np.save(sys.argv[4], session.run(None, {"X": np.load(sys.argv[3])})[0])
"""


def run_child(tmp_path: Path, node, x: np.ndarray, **environment: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "model.onnx").write_bytes(node.model())
    np.save(tmp_path / "x.npy", x)
    arguments = [str(library_path()), *(str(tmp_path / name) for name in ("model.onnx", "x.npy", "y.npy"))]
    return subprocess.run(
        [sys.executable, "-c", CHILD, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def problem(make_linear):
    linear = make_linear(200, 333, bits=4, group_size=32, norm=True, bias=True)
    return linear, np.random.default_rng(7).standard_normal((37, 333)).astype(np.float32)


@pytest.mark.parametrize("isa", ["scalar", ""])
def test_forced_isa_gives_the_same_bits(one_node, problem, tmp_path, isa) -> None:
    linear, x = problem
    child = run_child(tmp_path, one_node.linear(linear), x, BITNET_ONNX_ISA=isa)
    assert child.returncode == 0, child.stderr
    assert child.stderr == ""
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), bitlinear(x, linear))


def test_unknown_isa_is_an_error(one_node, problem, tmp_path) -> None:
    child = run_child(tmp_path, one_node.linear(problem[0]), problem[1], BITNET_ONNX_ISA="mmx")
    assert child.returncode != 0
    assert "BITNET_ONNX_ISA is 'mmx'; known values are" in child.stderr
    assert "scalar" in child.stderr


@pytest.mark.parametrize(("corrupt", "named"), [("1", "(bits 2, "), ("float", "(attention, rows 1, ")])
def test_failed_self_test_falls_back_with_one_warning(one_node, problem, tmp_path, corrupt, named) -> None:
    linear, x = problem
    child = run_child(tmp_path, one_node.linear(linear), x, BITNET_ONNX_TEST_CORRUPT=corrupt)
    assert child.returncode == 0, child.stderr
    assert child.stderr.count(f"fail their self-test {named}") == 1
    assert len(child.stderr.splitlines()) == 1
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), bitlinear(x, linear))


@pytest.mark.parametrize("tokens", [1, 7, 37])
def test_threads_do_not_change_bits(one_node, problem, tokens) -> None:
    linear, x = problem
    expected = bitlinear(x[:tokens], linear)
    for threads in (1, 2, 3, 8):
        np.testing.assert_array_equal(one_node.linear(linear).run(x[:tokens], threads), expected)


def test_library_registered_twice(one_node, problem) -> None:
    linear, x = problem
    session = one_node.linear(linear).session(registrations=2)
    np.testing.assert_array_equal(session.run(None, {"X": x})[0], bitlinear(x, linear))


def test_sessions_side_by_side_and_one_freed(one_node, problem, make_linear) -> None:
    """Sessions share no state: one goes away while two others run in two threads."""
    linear, x = problem
    other = make_linear(64, 333)
    expected = {id(item): bitlinear(x, item) for item in (linear, other)}
    wrong: list[str] = []

    def work(item, session) -> None:
        results = (session.run(None, {"X": x})[0] for _ in range(30))
        wrong.extend("a result changed" for y in results if not np.array_equal(y, expected[id(item)]))

    doomed = one_node.linear(linear).session()
    workers = [threading.Thread(target=work, args=(item, one_node.linear(item).session())) for item in (linear, other)]
    for worker in workers:
        worker.start()
    for _ in range(10):
        doomed = one_node.linear(linear).session()
    del doomed
    for worker in workers:
        worker.join()
    assert not wrong


def test_version_names_the_instruction_set() -> None:
    version = library_version()
    assert version is not None
    isas = ["avx512vnni", "avxvnni", "avx512", "avx2", "i8mm", "dotprod", "neon", "scalar"]
    assert version.endswith(tuple(f" ({isa})" for isa in isas))
