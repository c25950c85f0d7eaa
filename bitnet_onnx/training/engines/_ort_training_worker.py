"""The other end of `OrtTrainingEngine`: runs by its path in the environment of onnxruntime-training.

It knows the standard library, numpy, onnx and onnxruntime 1.19.2 alone. Messages on both pipes: the length of a JSON
header as 8 bytes, the header, and the bytes of the arrays that `arrays` of the header lists. Parameters and gradients
go through the file of the `ParameterStore`, which is mapped here and bound in place.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import struct
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

LENGTH = struct.Struct("<Q")
_GRADIENT = "_grad"

Arrays = dict[str, npt.NDArray[Any]]


def write_message(pipe: IO[bytes], header: Mapping[str, object], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Send a header and arrays."""
    laid = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    described = [[name, array.dtype.str, list(array.shape)] for name, array in laid.items()]
    text = json.dumps({**header, "arrays": described}).encode()
    pipe.write(LENGTH.pack(len(text)) + text)
    for array in laid.values():
        if array.size:
            pipe.write(_bytes_of(array))
    pipe.flush()


def read_message(pipe: IO[bytes]) -> tuple[dict[str, Any], Arrays]:
    """The next header and its arrays.

    Raises:
        EOFError: the other end is gone.
    """
    (size,) = LENGTH.unpack(_read(pipe, LENGTH.size))
    header = json.loads(_read(pipe, size))
    arrays: Arrays = {}
    for name, kind, shape in header.pop("arrays"):
        array = np.empty(shape, np.dtype(kind))
        if array.size:
            _fill(pipe, _bytes_of(array))
        arrays[name] = array
    return header, arrays


def _bytes_of(array: npt.NDArray[Any]) -> memoryview:
    return memoryview(cast("Any", array.reshape(-1))).cast("B")


def _read(pipe: IO[bytes], size: int) -> bytearray:
    block = bytearray(size)
    _fill(pipe, memoryview(block))
    return block


def _fill(pipe: IO[bytes], view: memoryview) -> None:
    done = 0
    while done < len(view):
        count = cast("Any", pipe).readinto(view[done:])
        if not count:
            raise EOFError
        done += count


class _Graphs:
    """The sessions over one forward graph, whose parameters are inputs.

    Args:
        header: `file`, `size` (floats of one block), `parameters` (name, first float, shape), `losses` and `threads`.
        arrays: `training` and `evaluation`: serialized forward graphs.
    """

    def __init__(self, header: Mapping[str, Any], arrays: Arrays) -> None:
        block = np.memmap(header["file"], np.float32, "r+", shape=(2, header["size"]))
        self._values: Arrays = {}
        self._gradients: Arrays = {}
        for name, first, shape in header["parameters"]:
            place = slice(first, first + int(np.prod(shape, dtype=np.int64)))
            self._values[name] = block[0, place].reshape(shape)
            self._gradients[name] = block[1, place].reshape(shape)
        self._losses: Sequence[str] = header["losses"]
        self._threads: int = header["threads"]
        self._evaluation_graph = arrays["evaluation"].tobytes()
        self._evaluation: Any = None
        model, self._flags = differentiated(arrays["training"].tobytes(), list(self._values), self._losses)
        self._training = self._session(model)
        self._has_reset = "lazy_reset_grad" in {value.name for value in self._training.get_inputs()}

    def accumulate(self, inputs: Arrays) -> dict[str, float]:
        """Add gradients to the store's, in place."""
        binding = self._bound(self._training, inputs, self._losses)
        names = {value.name for value in self._training.get_inputs()}
        for name, gradient in self._gradients.items():
            if (buffer := f"{name}{_GRADIENT}.accumulation.buffer") in names:
                _bind(binding, buffer, gradient)
        if self._has_reset:
            binding.bind_cpu_input("lazy_reset_grad", np.array([False]))
        for flag in self._flags:
            binding.bind_output(flag)
        return self._run(self._training, binding, self._losses)

    def evaluate(self, inputs: Arrays) -> dict[str, float]:
        """The outputs of the evaluation's graph."""
        if self._evaluation is None:
            self._evaluation = self._session(self._evaluation_graph)
            self._evaluation_graph = b""
        names = [value.name for value in self._evaluation.get_outputs()]
        return self._run(self._evaluation, self._bound(self._evaluation, inputs, names), names)

    def _session(self, model: bytes) -> Any:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3
        # Shapes of the first run would be laid out a second time as one block, beside what the first run took.
        options.enable_mem_pattern = False
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def _bound(self, session: Any, inputs: Arrays, losses: Sequence[str]) -> Any:
        binding = session.io_binding()
        for value in session.get_inputs():
            if value.name in self._values:
                _bind(binding, value.name, self._values[value.name])
            elif value.name in inputs:
                binding.bind_cpu_input(value.name, inputs[value.name])
        for name in losses:
            binding.bind_output(name)
        return binding

    def _run(self, session: Any, binding: Any, losses: Sequence[str]) -> dict[str, float]:
        session.run_with_iobinding(binding)
        values = binding.copy_outputs_to_cpu()
        return {name: float(value) for name, value in zip(losses, values, strict=False)}


def _bind(binding: Any, name: str, array: npt.NDArray[Any]) -> None:
    binding.bind_input(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)


def differentiated(model: bytes, parameters: Sequence[str], outputs: Sequence[str]) -> tuple[bytes, list[str]]:
    """The graph that adds the gradient of the first output to accumulation buffers, and its outputs that say so."""
    import onnx
    from onnxruntime import SessionOptions
    from onnxruntime.capi._pybind_state import GradientGraphBuilder, get_optimized_model

    options = SessionOptions()
    options.log_severity_level = 3
    # The builder refuses a parameter that nothing reads.
    read = {name for node in onnx.load_from_string(model).graph.node for name in node.input}
    wanted = read.intersection(parameters)
    forward = get_optimized_model(model, wanted, options)
    builder = GradientGraphBuilder(forward, {outputs[0]}, wanted, outputs[0], options)
    builder.build()
    gradient = onnx.load_from_string(builder.get_model())
    graph = gradient.graph
    by_name = {value.name: value for value in graph.output}
    made = {name for node in graph.node for name in node.output}
    kept = [by_name[name] for name in outputs]
    flags = []
    for name in parameters:
        value = f"{name}{_GRADIENT}"
        # One that the loss does not depend on has none.
        if value not in by_name or value not in made:
            continue
        buffer = onnx.ValueInfoProto()
        buffer.CopyFrom(next(source for source in graph.input if source.name == name))
        buffer.name = f"{value}.accumulation.buffer"
        graph.input.append(buffer)
        flag = f"{value}.accumulation.out"
        graph.node.append(
            onnx.helper.make_node(
                "InPlaceAccumulatorV2", [buffer.name, value, "lazy_reset_grad"], [flag], domain="com.microsoft"
            )
        )
        kept.append(onnx.helper.make_tensor_value_info(flag, onnx.TensorProto.BOOL, [1]))
        flags.append(flag)
    if flags:
        graph.input.append(onnx.helper.make_tensor_value_info("lazy_reset_grad", onnx.TensorProto.BOOL, [1]))
    del graph.output[:]
    graph.output.extend(kept)
    return gradient.SerializeToString(), flags


def _listen(pipe: IO[bytes], messages: queue.Queue[tuple[dict[str, Any], Arrays]]) -> None:
    """Read in a thread, so that the end of the parent ends this process in the middle of a step too."""
    try:
        while True:
            messages.put(read_message(pipe))
    finally:
        os._exit(0)


def main() -> None:
    """Answer messages until the pipe ends."""
    # The parent decides: it finishes its step and writes a checkpoint, which needs this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is not an answer
    messages: queue.Queue[tuple[dict[str, Any], Arrays]] = queue.Queue(1)
    threading.Thread(target=_listen, args=(sys.stdin.buffer, messages), daemon=True).start()
    graphs: _Graphs | None = None
    while True:
        header, arrays = messages.get()
        answer: dict[str, object]
        try:
            if header["command"] == "open":
                graphs = _Graphs(header, arrays)
                answer = {}
            elif graphs is None:
                raise ValueError("no graph is open")
            else:
                work = graphs.accumulate if header["command"] == "accumulate" else graphs.evaluate
                answer = {"losses": work(arrays)}
        except Exception as error:  # whatever it is, the parent says it
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())}
        write_message(answers, answer, {})


if __name__ == "__main__":
    main()
