"""Options of ONNX Runtime under which a differentiated graph takes least memory and counts the same every way."""

from __future__ import annotations

from typing import Final

import onnxruntime

from bitnet_onnx.training.arena import share_arena

_ERRORS: Final = 3
#: Fusions that would only meet the forward pass, where the backward pass reads nothing inside of it. A second
#: computation would then differ in the last bits, and rounding could fall the other way.
FORWARD_FUSIONS: Final = (
    "BiasGeluFusion",
    "BiasSoftmaxFusion",
    "FastGeluFusion",
    "GeluFusionL1",
    "GeluFusionL2",
    "LayerNormFusion",
    "MatMulScaleFusion",
    "QuickGeluFusion",
    "SimplifiedLayerNormFusion",
    "SkipLayerNormFusion",
)


def differentiated_session(model: bytes, threads: int) -> onnxruntime.InferenceSession:
    """A session on the CPU.

    Nodes run in the order in which they stand: the order that ONNX Runtime would choose leaves gradients of weights
    to the end, and what they read with them.

    Args:
        model: what `differentiate` returned, serialized.
        threads: 0 is all cores.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # An evaluation leaves constants of other losses unused, which would be told as a warning.
    options.log_severity_level = _ERRORS
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    share_arena(options)
    return onnxruntime.InferenceSession(
        model, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(FORWARD_FUSIONS)
    )
