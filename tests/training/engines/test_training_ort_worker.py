from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from engine_graphs import HandMade, hand_made_graph, hand_made_inputs, hand_made_store

from bitnet_onnx.errors import BitnetOnnxError, InputError
from bitnet_onnx.training.engines import _ort_training_worker as worker_file
from bitnet_onnx.training.engines.ort_training import OrtTrainingEngine, _Worker, check_traps
from bitnet_onnx.training.settings import EngineSettings

# The process itself starts under any Python with numpy: what it cannot do there, it says.
_HERE = Path(sys.executable)


def _gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError:
        return True
    # A process that has ended stays in the table until its parent has asked.
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text("ascii", "replace").rsplit(")", 1)[-1].split()[0] == "Z"
    return False


def test_arrays_of_every_shape_pass_through_a_pipe() -> None:
    arrays = {
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 3), np.int64),
        "turned": np.arange(6.0).reshape(2, 3).T,
        "flags": np.array([True, False]),
        "long": np.arange(200_000, dtype=np.int64),
    }
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as source:
        with os.fdopen(writing, "wb") as sink:
            thread = threading.Thread(target=worker_file.write_message, args=(sink, {"command": "x"}, arrays))
            thread.start()
            header, read = worker_file.read_message(source)
            thread.join()
        assert header == {"command": "x"}
        assert read.keys() == arrays.keys()
        for name, array in arrays.items():
            assert read[name].dtype == array.dtype
            np.testing.assert_array_equal(read[name], array, strict=True)
        with pytest.raises(EOFError):
            worker_file.read_message(source)


def test_what_libraries_print_is_no_answer(tmp_path: Path) -> None:
    script = tmp_path / "noisy.py"
    script.write_text(
        "import importlib.util, os, sys\n"
        f"spec = importlib.util.spec_from_file_location('worker', {os.fspath(Path(worker_file.__file__))!r})\n"
        "worker = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(worker)\n"
        "class Noisy:\n"
        "    def __init__(self, header, arrays): print('from Python'); os.write(1, b'from below\\n')\n"
        "    def evaluate(self, arrays): print('again', flush=True); return {'loss': float(arrays['x'].sum())}\n"
        "worker._Graphs = Noisy\n"
        "worker.main()\n",
        "utf-8",
    )
    with subprocess.Popen([_HERE, script], stdin=-1, stdout=-1, stderr=-1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        for command, expected in (("open", {}), ("evaluate", {"losses": {"loss": 6.0}})):
            worker_file.write_message(process.stdin, {"command": command}, {"x": np.array([1, 2, 3])})
            assert worker_file.read_message(process.stdout)[0] == expected
        process.stdin.close()
        assert process.wait(10) == 0
        assert process.stdout.read() == b""
        assert b"from below" in process.stderr.read()


def test_an_environment_that_cannot_train_is_named(tmp_path: Path) -> None:
    """This environment has the onnxruntime of inference."""
    with pytest.raises(BitnetOnnxError, match=r"onnxruntime-training 1\.19\.2 failed to open: .*GradientGraphBuilder"):
        OrtTrainingEngine(hand_made_graph(), hand_made_store(tmp_path / "store"), EngineSettings(), _HERE)


def test_a_python_that_is_not_there_is_named(tmp_path: Path) -> None:
    absent = tmp_path / "python"
    with pytest.raises(BitnetOnnxError, match=r"does not start: .*python: No such file"):
        OrtTrainingEngine(hand_made_graph(), hand_made_store(tmp_path / "store"), EngineSettings(), absent)


def test_parameters_must_lie_in_a_file() -> None:
    with pytest.raises(ValueError, match="must lie in a file"):
        OrtTrainingEngine(hand_made_graph(), hand_made_store(), EngineSettings(), _HERE)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_killed_process_is_one_clear_error() -> None:
    worker = _Worker(_HERE)
    worker._process.kill()
    with pytest.raises(BitnetOnnxError, match=r"was killed by signal 9: it said nothing; out of memory\?") as caught:
        worker.ask({"command": "evaluate"}, {"x": np.zeros(1_000_000)})
    assert "\n" not in str(caught.value)
    with pytest.raises(BitnetOnnxError, match="has ended: open the engine again"):
        worker.ask({"command": "evaluate"}, {})
    worker.close()


def test_a_dead_process_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import sys\nsys.stderr.write('one\\ntwo\\nthree\\nfour\\n')\nsys.exit(7)\n", "utf-8")
    monkeypatch.setattr("bitnet_onnx.training.engines.ort_training._WORKER", broken)
    worker = _Worker(_HERE)
    with pytest.raises(BitnetOnnxError, match=r"ended with status 7: two \| three \| four$"):
        worker.ask({"command": "evaluate"}, {})


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_the_process_outlives_signals_of_the_terminal_but_not_its_parent() -> None:
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from bitnet_onnx.errors import BitnetOnnxError\n"
        "from bitnet_onnx.training.engines.ort_training import _Worker\n"
        "worker = _Worker(Path(sys.executable))\n"
        "def ask():\n"
        "    try: worker.ask({'command': 'evaluate'}, {})\n"
        "    except BitnetOnnxError as error: print(error, flush=True)\n"
        "ask()\n"
        "for sent in (signal.SIGINT, signal.SIGTERM): os.kill(worker._process.pid, sent)\n"
        "ask()\n"
        "print(worker._process.pid, flush=True)\n"
        "signal.pause()\n"
    )
    with subprocess.Popen([_HERE, "-P", "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        for _ in range(2):
            assert parent.stdout.readline().strip().endswith("ValueError: no graph is open")
        process = int(parent.stdout.readline())
        assert not _gone(process)
        parent.send_signal(signal.SIGKILL)
        parent.wait(10)
    for _ in range(100):
        if _gone(process):
            return
        time.sleep(0.1)
    os.kill(process, signal.SIGKILL)
    pytest.fail("the process outlived its parent by 10 s")


def test_a_split_with_an_unused_output_is_refused() -> None:
    """onnxruntime-training gives a wrong gradient for it, and no error."""
    model = hand_made_graph().model
    halves = ir.node("Split", [next(value for value in model.graph.inputs if value.name == "weight")], num_outputs=2)
    halves.name = "halves"
    for index, value in enumerate(halves.outputs):
        value.name = f"half.{index}"
    model.graph.insert_before(model.graph[0], halves)
    for index, value in enumerate(halves.outputs):
        with pytest.raises(ValueError, match="node halves: the gradient of a Split with an unused output is wrong"):
            check_traps(model)
        read = ir.node("Abs", [value])
        read.outputs[0].name = f"read.{index}"
        model.graph.insert_after(halves, read)
    check_traps(model)


def test_a_loss_without_its_second_output_is_refused() -> None:
    model = hand_made_graph().model
    next(node for node in model.graph if node.op_type == "SoftmaxCrossEntropyLoss").resize_outputs(1)
    with pytest.raises(ValueError, match="SoftmaxCrossEntropyLoss must declare 2 outputs"):
        check_traps(model)


def test_a_normalization_without_its_statistics_is_refused() -> None:
    model = hand_made_graph().model
    table = {value.name: value for value in model.graph.inputs}
    norm = ir.node("LayerNormalization", [table["weight"], table["weight"]])
    norm.outputs[0].name = "normed"
    model.graph.append(norm)
    with pytest.raises(ValueError, match="LayerNormalization must declare 3 outputs"):
        check_traps(model)


def test_a_newer_file_format_is_refused() -> None:
    model = hand_made_graph().model
    model.ir_version = 11
    with pytest.raises(ValueError, match="IR version 11, at most 10"):
        check_traps(model)


def test_a_loss_that_is_no_scalar_is_refused(tmp_path: Path) -> None:
    graph = hand_made_graph()
    loss = next(value for value in graph.model.graph.outputs if value.name == "loss")
    loss.shape = ir.Shape([1])
    with pytest.raises(ValueError, match=r"no output loss of shape \[\]"):
        OrtTrainingEngine(graph, hand_made_store(tmp_path / "store"), EngineSettings(), _HERE)


def test_scalars_become_arrays(training_python: Path, tmp_path: Path) -> None:
    """1.19.2 takes arrays only."""
    graph: HandMade = hand_made_graph()
    engine = OrtTrainingEngine(graph, hand_made_store(tmp_path / "store"), EngineSettings(threads=1), training_python)
    with contextlib.closing(engine):
        inputs = hand_made_inputs()
        assert engine.evaluate(inputs | {"normalizer": np.float32(13)}) == engine.evaluate(inputs)
        with pytest.raises(InputError, match="normalizer of the training graph is float64 of 0 dimensions"):
            engine.evaluate(inputs | {"normalizer": 13.0})


def test_a_step_that_fails_leaves_the_engine_usable(training_python: Path, tmp_path: Path) -> None:
    engine = OrtTrainingEngine(
        hand_made_graph(), hand_made_store(tmp_path / "store"), EngineSettings(threads=1), training_python
    )
    with contextlib.closing(engine):
        inputs = hand_made_inputs()
        good = engine.evaluate(inputs)
        with pytest.raises(BitnetOnnxError, match=r"failed to accumulate: .*indices element out of data bounds"):
            engine.accumulate(inputs | {"input_ids": inputs["input_ids"] + 100})
        assert engine.evaluate(inputs) == good
