"""A matrix made orthogonal by Newton-Schulz iterations, on ONNX Runtime."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from bitnet_onnx.quantized import FloatArray
from bitnet_onnx.training.graph._builder import Builder

#: An odd polynomial of degree 5 that takes (0, 1] to about 1, steep at 0 (Jordan et al., 2024).
_COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
_ITERATIONS: Final = 5


class Orthogonal:
    """Makes `U V^T` of `U S V^T`, about: singular values between 0.7 and 1.2, those near 0 less.

    Products are ONNX Runtime's and not numpy's, whose threads the user does not set with those of the engine.

    Args:
        threads: of a product; 0 is all cores.
    """

    def __init__(self, threads: int = 0) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Products are short, and the engine's threads wait beside them.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        model = ir.to_proto(_iterations()).SerializeToString()
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def __call__(self, matrix: FloatArray) -> FloatArray:
        """The orthogonal one.

        Args:
            matrix: float32 `[N, K]`; all zero gives zero.
        """
        peak = float(np.abs(matrix).max())
        if not peak:
            return np.zeros_like(matrix)
        # In two steps, as the squares of very large or small floats are none.
        wide = matrix / np.float32(peak)
        wide /= np.float32(np.sqrt(np.square(wide, dtype=np.float64).sum()))
        tall = wide.shape[0] > wide.shape[1]
        if tall:
            wide = np.ascontiguousarray(wide.T)
        found: FloatArray = self._session.run(None, {"matrix": wide})[0]
        return np.ascontiguousarray(found.T) if tall else found


def _iterations() -> ir.Model:
    """`X <- a X + (b X X^T + c (X X^T)^2) X`, each a product with a sum behind it."""
    build = Builder()
    first, third, fifth = _COEFFICIENTS
    x = build.input("matrix", ir.DataType.FLOAT, ["rows", "columns"])
    for number in range(_ITERATIONS):
        gram = build.node(f"/{number}/gram/Gemm", [x, x], {"transB": 1})
        inner = build.node(f"/{number}/inner/Gemm", [gram, gram, gram], {"alpha": fifth, "beta": third})
        x = build.node(f"/{number}/Gemm", [inner, x, x], {"beta": first})
    build.output(x, "orthogonal", ["rows", "columns"])
    return build.model()
