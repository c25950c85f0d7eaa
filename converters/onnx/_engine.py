"""The graph of our own runtime: logits only from the position that it asks for.

Other runtimes expect logits of every position. A prompt needs those of its last one alone, and the head is up to a
third of the work of a small model, so the package holds a second graph over the same data file.
"""

from __future__ import annotations

from typing import Final

import onnx_ir as ir
from onnx_ir import convenience

from bitnet_onnx.package_format import LOGITS_START

_TO_THE_END: Final = (1 << 63) - 1
_PATH: Final = "/model/wanted"


def restrict_logits(model: ir.Model, hidden: ir.Value) -> None:
    """Add the input `logits_start` (int64 `[1]`): positions before it are cut off before the head.

    Args:
        model: the decoder; changed in place.
        hidden: what the head reads, `[batch, sequence, hidden]`.
    """
    graph = model.graph
    start = ir.Value(name=LOGITS_START, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1]))
    graph.inputs.append(start)
    constants = [
        ir.node("Constant", [], {"value_ints": [value]}, name=f"{_PATH}/{name}/Constant")
        for name, value in (("ends", _TO_THE_END), ("axes", 1))
    ]
    cut = ir.node("Slice", [hidden, start, *(node.outputs[0] for node in constants)], name=f"{_PATH}/Slice")
    cut.outputs[0].name = f"{_PATH}/Slice/output_0"
    for node, name in zip(constants, ("ends", "axes"), strict=True):
        node.outputs[0].name = f"{_PATH}/{name}/Constant/output_0"
    head = next(iter(hidden.consumers()))
    convenience.replace_all_uses_with(hidden, cut.outputs[0])
    cut.replace_input_with(0, hidden)
    graph.insert_before(head, [*constants, cut])
    logits = graph.outputs[0]
    batch, _, vocabulary = logits.shape or (None, None, None)
    logits.shape = ir.Shape([batch, "logits_length", vocabulary])
