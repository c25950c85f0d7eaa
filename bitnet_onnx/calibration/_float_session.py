"""The float model in ONNX Runtime, some of whose weights are replaced from call to call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import numpy as np
import onnx

from bitnet_onnx.calibration._taps import merged_path
from bitnet_onnx.calibration.collection import float_package
from bitnet_onnx.converters.onnx._emitter import dotted
from bitnet_onnx.converters.onnx._linear_layers import module_path
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.evaluation._session import PackageSession, load_graph
from bitnet_onnx.policy import HEAD_ROLES
from bitnet_onnx.quantized import FloatArray
from bitnet_onnx.runtime import Device, PackageInfo

#: The layers of one unit, and a matrix for each.
Changes = Mapping[tuple[str, ...], Sequence[FloatArray]]


class FloatSession:
    """Logits of the float model, as it is or with other matrices.

    Args:
        package: all of whose weights are floats.
        spec: of the model.
        device: where it runs.
    """

    def __init__(self, package: PackageInfo, spec: DecoderSpec, device: Device) -> None:
        self.package = package
        self.spec = spec
        graph = load_graph(package.model_path).graph
        self._names = _constants(graph, spec)
        self._session = PackageSession(package, device, replaceable=sorted(set(self._names.values())))

    @classmethod
    @contextmanager
    def open(cls, source: Path, device: Device) -> Iterator[Self]:
        """The float model of a checkpoint or a package, as long as the block lasts."""
        with float_package(source) as (package, spec):
            yield cls(package, spec, device)

    def logits(self, ids: Sequence[int], changes: Changes | None = None) -> FloatArray:
        """Logits `[T, vocab_size]` of one text.

        Args:
            ids: its tokens.
            changes: other matrices `[N, K]` for all layers of some units.
        """
        constants: dict[str, FloatArray] = {}
        for roles, matrices in (changes or {}).items():
            joint = np.concatenate(matrices) if len(matrices) > 1 else matrices[0]
            # The embedding is stored as it is, a linear layer for `x @ W`.
            constants[self._names[roles[0]]] = joint if roles[0] in HEAD_ROLES else np.ascontiguousarray(joint.T)
        return self._session.run(ids, constants=constants)[0]


def _constants(graph: onnx.GraphProto, spec: DecoderSpec) -> dict[str, str]:
    """The constant that holds each matrix, perhaps with others."""
    known = {tensor.name for tensor in graph.initializer}
    names = {}
    for role, _ in spec.matrices():
        own = dotted(module_path(role), "weight")
        names[role] = own if own in known or role in HEAD_ROLES else dotted(merged_path(role), "weight")
    return names
