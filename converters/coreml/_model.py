"""A program of one or two functions, and the protobuf that Core ML reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from bitnet_onnx.converters.coreml._attention import CACHES, cache_shape
from bitnet_onnx.converters.coreml._graph import Graph
from bitnet_onnx.converters.coreml._tools import Tools, Value
from bitnet_onnx.converters.coreml._weight_file import WeightFile
from bitnet_onnx.converters.coreml.options import DeploymentTarget
from bitnet_onnx.decoder import DecoderSpec

#: As applications for language models expect them.
IDS: Final = "inputIds"
MASK: Final = "causalMask"
LOGITS: Final = "logits"
MAIN: Final = "main"
PREFILL: Final = "prefill"
DECODE: Final = "decode"

WEIGHTS_REFERENCE: Final = "@model_path/weights/weight.bin"


@dataclass(frozen=True, slots=True)
class Call:
    """What a function is given.

    Attributes:
        graph: where its operations go.
        ids: int32 `[1, query]`.
        mask: float16 `[1, 1, query, key]`.
        states: of keys and values.
        single: the query has one token.
    """

    graph: Graph
    ids: Value
    mask: Value
    states: tuple[Value, Value]
    single: bool


def function_names(*, split: bool) -> tuple[str, ...]:
    """Of a package; the first is what an application gets that names none."""
    return (PREFILL, DECODE) if split else (MAIN,)


def build_program(
    tools: Tools,
    weights: WeightFile,
    spec: DecoderSpec,
    target: DeploymentTarget,
    emit: Callable[[Call], Value],
    *,
    split: bool,
) -> Any:
    """A program whose functions read tokens and a mask, and keep keys and values.

    No pass of coremltools is run over it: some of them merge reads of a state across its updates, and others hold
    every weight in memory.

    Args:
        tools: coremltools.
        weights: where constants go.
        spec: what the decoder is.
        target: the oldest system that reads it.
        emit: gives the logits of a call.
        split: see `function_names`.
    """
    # The builder counts names over all programs; a package must not depend on what was built before it.
    tools.ops.name_count.clear()
    program = tools.program()
    for name in function_names(split=split):
        program.add_function(name, _function(tools, weights, spec, target, emit, single=name == DECODE))
    program.default_function_name = function_names(split=split)[0]
    program.export_as_multifunction = split
    program.skip_all_passes = True
    return program


def _function(
    tools: Tools,
    weights: WeightFile,
    spec: DecoderSpec,
    target: DeploymentTarget,
    emit: Callable[[Call], Value],
    *,
    single: bool,
) -> Any:
    ops, types = tools.ops, tools.types
    query = 1 if single else tools.new_symbol()
    key = tools.new_symbol()
    inputs = {
        IDS: ops.placeholder(shape=(1, query), dtype=types.int32),
        MASK: ops.placeholder(shape=(1, 1, query, key), dtype=types.fp16),
        **{name: ops.state_tensor_placeholder(shape=cache_shape(spec), dtype=types.fp16) for name in CACHES},
    }
    length = tools.range_dim(lower_bound=1, upper_bound=spec.context_length, default=1)
    tokens = 1 if single else length
    function = tools.function(inputs, opset_version=getattr(tools.targets, str(target)))
    with function:
        given = function.inputs
        states = given[CACHES[0]], given[CACHES[1]]
        logits = emit(Call(Graph(tools, weights), given[IDS], given[MASK], states, single))
        function.set_outputs([logits])
    function.set_input_types(
        (
            tools.tensor_type(name=IDS, shape=(1, tokens), dtype=types.int32),
            tools.tensor_type(name=MASK, shape=(1, 1, tokens, length), dtype=types.fp16),
        )
    )
    return function


def export_model(tools: Tools, program: Any, weights: WeightFile, target: DeploymentTarget) -> Any:
    """The protobuf of a program.

    Args:
        tools: coremltools.
        program: to write.
        weights: what holds its constants.
        target: the oldest system that reads it.
    """
    base: Any = tools.program_exporter

    class Exporter(base):  # type: ignore[misc]  # the class is known only when coremltools is loaded
        """Knows where constants stand that were written before."""

        def create_file_value(self, var: Any) -> Any:
            stored = weights.get(var.name)
            if stored is None or stored.offset is None:
                return super().create_file_value(var)
            place = tools.program_proto.Value.BlobFileValue(fileName=WEIGHTS_REFERENCE, offset=stored.offset)
            return tools.program_proto.Value(type=self.types_to_proto(var.sym_type), blobFileValue=place)

    version = int(getattr(tools.targets, str(target)))
    exporter = Exporter(program, str(weights.path.parent), version)
    exporter.blob_writers[str(weights.path)] = weights.writer
    described = tools.model_exporter(
        program,
        exporter.export(),
        predicted_feature_name=None,
        predicted_probabilities_name=None,
        classifier_config=None,
        convert_to="mlprogram",
        convert_from="milinternal",
        specification_version=version,
    )
    return described.export(version)
