"""Gradients by onnxruntime-training 1.19.2, in its own environment and process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bitnet_onnx.errors import BitnetOnnxError
from bitnet_onnx.training.engines._inputs import GraphInputs, loss_names
from bitnet_onnx.training.engines._ort_training_worker import read_message, write_message
from bitnet_onnx.training.engines.engine import Inputs
from bitnet_onnx.training.engines.environment import VERSION, prepare
from bitnet_onnx.training.graph.options import LOSS
from bitnet_onnx.training.graph.pruning import evaluation_graph
from bitnet_onnx.training.graph.stop_gradient import as_identity, as_sequence

if TYPE_CHECKING:
    from bitnet_onnx.training.graph.decoder import TrainingGraph
    from bitnet_onnx.training.parameters import ParameterStore
    from bitnet_onnx.training.settings import EngineSettings

_WORKER: Final = Path(__file__).with_name("_ort_training_worker.py")
_SECONDS_TO_END: Final = 5
_MAX_IR_VERSION: Final = 10
#: Outputs that its gradients read, declared or not: without them they are wrong, or an error far from its cause.
_OUTPUTS: Final = {"LayerNormalization": 3, "SoftmaxCrossEntropyLoss": 2}


class OrtTrainingEngine:
    """A process of onnxruntime-training over a training graph; it ends with this one.

    Args:
        graph: what is trained.
        store: parameters, in a file that both processes map.
        settings: threads.
        python: of the environment; None makes it where needed.

    Raises:
        UnsupportedError: the environment cannot be had on this machine.
        BitnetOnnxError: it cannot be made, or the graph cannot be opened.
    """

    def __init__(
        self, graph: TrainingGraph, store: ParameterStore, settings: EngineSettings, python: Path | None = None
    ) -> None:
        if store.path is None:
            raise ValueError("onnxruntime-training runs in a process of its own: the parameters must lie in a file")
        check_traps(graph.model)
        evaluated = evaluation_graph(graph.model)
        self._inputs: Final = {
            "accumulate": GraphInputs(graph.model, graph.parameters),
            "evaluate": GraphInputs(evaluated, graph.parameters),
        }
        losses = loss_names(graph.model, LOSS)
        header = {
            "command": "open",
            "file": os.fspath(store.path.absolute()),
            "size": store.size,
            "parameters": [[name, store.place(name).start, store.shapes[name]] for name in graph.parameters],
            "losses": losses,
            "threads": settings.threads,
        }
        graphs = {
            "training": _serialized(as_sequence(graph.model)),
            "evaluation": _serialized(as_identity(evaluated)),
        }
        self._worker: Final = _Worker(prepare() if python is None else python)
        try:
            self._worker.ask(header, graphs)
        except BaseException:
            self.close()
            raise

    def accumulate(self, inputs: Inputs) -> dict[str, float]:
        """Add the gradients of `loss` to the store's, and return all losses by output name.

        Raises:
            InputError: an input is missing or of another type.
            BitnetOnnxError: the process failed or ended.
        """
        return self._losses("accumulate", inputs)

    def evaluate(self, inputs: Inputs) -> dict[str, float]:
        """The cross entropy alone, of the values that the store holds now; it raises as `accumulate`."""
        return self._losses("evaluate", inputs)

    def close(self) -> None:
        """End the process; twice is fine."""
        self._worker.close()

    def _losses(self, command: str, inputs: Inputs) -> dict[str, float]:
        arrays = self._inputs[command].arrays(inputs)
        return cast("dict[str, float]", self._worker.ask({"command": command}, arrays)["losses"])


class _Worker:
    """The process, and questions to it."""

    def __init__(self, python: Path) -> None:
        # What it prints is read when it has ended: a pipe that nobody empties would stop it.
        self._errors: Final = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                [python, "-I", _WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
            )
        except OSError as error:
            self._errors.close()
            raise BitnetOnnxError(
                f"onnxruntime-training {VERSION} does not start: {python}: {error.strerror or error}"
            ) from error
        self._questions: Final = cast("IO[bytes]", self._process.stdin)
        self._answers: Final = cast("IO[bytes]", self._process.stdout)

    def ask(self, header: Mapping[str, object], arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
        """The answer.

        Raises:
            BitnetOnnxError: the process could not do it, or ended; it is closed then.
        """
        if self._questions.closed:
            raise BitnetOnnxError(f"onnxruntime-training {VERSION} has ended: open the engine again")
        try:
            write_message(self._questions, header, arrays)
            answer, _ = read_message(self._answers)
        except (OSError, EOFError, ValueError):
            raise BitnetOnnxError(self._obituary()) from None
        except BaseException:
            # Half a message is on its way: the next answer would belong to this question.
            self.close()
            raise
        if "error" in answer:
            raise BitnetOnnxError(f"onnxruntime-training {VERSION} failed to {header['command']}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End it."""
        for pipe in (self._questions, self._answers):
            with contextlib.suppress(OSError):  # what was left to write has no reader
                pipe.close()
        self._status()
        self._errors.close()

    def _status(self) -> int:
        try:
            return self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _obituary(self) -> str:
        """How it ended and the last that it said, in one line."""
        status = self._status()
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(self._errors.tell() - 2000, 0))
        lines = self._errors.read().decode(errors="replace").splitlines()
        said = " | ".join(line.strip() for line in lines[-3:] if line.strip()) or "it said nothing"
        self.close()
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        advice = "; out of memory? take a smaller engine.micro_batch" if status == -9 else ""
        return f"onnxruntime-training {VERSION} {how}: {said}{advice}"


def check_traps(model: ir.Model) -> None:
    """Refuse a graph that onnxruntime-training would differentiate wrongly without a word, or not at all.

    Raises:
        ValueError: naming the node.
    """
    if model.ir_version > _MAX_IR_VERSION:
        raise ValueError(f"the training graph has IR version {model.ir_version}, at most {_MAX_IR_VERSION} is read")
    kept = set(model.graph.outputs)
    for node in model.graph.all_nodes():
        if node.op_type == "Split" and not all(value.uses() or value in kept for value in node.outputs):
            raise ValueError(f"node {node.name}: the gradient of a Split with an unused output is wrong; use Slice")
        wanted = _OUTPUTS.get(node.op_type, 0)
        if len([value for value in node.outputs if value.name]) < wanted:
            raise ValueError(f"node {node.name}: {node.op_type} must declare {wanted} outputs for its gradient")


def _serialized(model: ir.Model) -> npt.NDArray[np.uint8]:
    return np.frombuffer(ir.to_proto(model).SerializeToString(), np.uint8)
