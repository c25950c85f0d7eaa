"""Linear layers of a decoder in a graph: of any precision, and several on one input in one node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from bitnet_onnx.converters.model import Tensors
from bitnet_onnx.converters.onnx._emitter import dotted
from bitnet_onnx.converters.onnx._linears import LayerRecord, quantize
from bitnet_onnx.converters.onnx.forms.form import LayerInput, OperatorForm, StoredMatrix
from bitnet_onnx.decoder import DecoderSpec, Norm
from bitnet_onnx.policy import Policy, Precision
from bitnet_onnx.quantization.statistics import Calibration
from bitnet_onnx.quantized import FloatArray, QuantizedTensor, concatenate


class LinearLayers:
    """Emits linear layers and norms, reading each tensor once.

    Args:
        spec: what the decoder is.
        tensors: its weights by role.
        policy: the precision of each layer.
        form: the operators that they are written in.
        record: called with what became of each matrix.
        calibration: what is known of the layers' inputs.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        tensors: Tensors,
        policy: Policy,
        form: OperatorForm,
        record: Callable[[LayerRecord], None],
        calibration: Calibration | None = None,
    ) -> None:
        self._spec = spec
        self._tensors = tensors
        self._policy = policy
        self._form = form
        self._record = record
        self._calibration = calibration

    def input(self, x: ir.Value, role: str | None) -> LayerInput:
        """`x` through the norm `role`; None is no norm."""
        if role is None:
            return LayerInput(self._form, x)
        if self._spec.norm is Norm.RMS:
            norm = self._tensors.read(f"{role}.weight")
            return LayerInput(self._form, x, module_path(role), norm, self._spec.norm_epsilon)
        return LayerInput(self._form, self.norm(role, x))

    def norm(self, role: str, x: ir.Value) -> ir.Value:
        """The norm `role` as nodes of its own."""
        weight = self._tensors.read(f"{role}.weight")
        if self._spec.norm is Norm.RMS:
            return self._form.rms_norm(module_path(role), x, weight, self._spec.norm_epsilon)
        bias = self._tensors.read(f"{role}.bias")
        return self._form.layer_norm(module_path(role), x, weight, bias, self._spec.norm_epsilon)

    def linears(self, merged: str, roles: Sequence[str], x: LayerInput, *, bias: bool) -> Sequence[ir.Value]:
        """Linear layers on one input: one node where all share a precision, else one each.

        Args:
            merged: module path of the joint node, e.g. `/model/layers.0/attn/qkv_proj`.
            roles: the layers, in the order of the result.
            x: their input.
            bias: they have one.

        Returns:
            One value that holds the results side by side, or one for each role.
        """
        if self._spec.linear_norm_epsilon is not None and roles[0].startswith("layers."):
            # Each layer norms its input with a weight of its own: nothing can be shared.
            shared = x.normalized()
            return [self._normed_linear(role, shared, self._spec.linear_norm_epsilon, bias) for role in roles]
        matrices = [self._matrix(role) for role in roles]
        biases = [self._tensors.read(f"{role}.bias") for role in roles] if bias else []
        bits = [self.precision(role).activation_bits for role in roles]
        quantized = [matrix for matrix in matrices if isinstance(matrix, QuantizedTensor)]
        joint_bias = np.concatenate(biases) if bias else None
        if len(quantized) == len(matrices) and len({matrix.grid for matrix in quantized}) == len(set(bits)) == 1:
            joint = concatenate(quantized) if len(quantized) > 1 else quantized[0]
            return [self._linear(merged, x, joint, bits[0], joint_bias)]
        if not quantized:
            weight = np.concatenate([matrix for matrix in matrices if not isinstance(matrix, QuantizedTensor)])
            return [self._form.float_linear(merged, x, weight, joint_bias)]
        return [
            self._linear(module_path(role), x, matrix, activation_bits, biases[index] if bias else None)
            for index, (role, matrix, activation_bits) in enumerate(zip(roles, matrices, bits, strict=True))
        ]

    def table(self, role: str) -> StoredMatrix | ir.Value:
        """Store the embedding's or the head's matrix."""
        path = module_path(role)
        matrix = self._matrix(role)
        if isinstance(matrix, QuantizedTensor):
            only_rows = role == "embed_tokens" and not self._spec.tie_word_embeddings
            return self._form.matrix(path, matrix, None if only_rows else self.precision(role).activation_bits)
        return self._form.emit.constant(dotted(path, "weight"), matrix)

    def precision(self, role: str) -> Precision:
        """The precision of a matrix as it is used here."""
        chosen = self._policy.precision(role)
        if role == "embed_tokens" and not self._spec.tie_word_embeddings:
            # Rows that are only looked up meet no activations.
            return replace(chosen, activation_bits=0)
        return chosen

    def _normed_linear(self, role: str, x: ir.Value, epsilon: float, bias: bool) -> ir.Value:
        path = module_path(role)
        norm = self._tensors.read(f"{role}.norm.weight")
        given = LayerInput(self._form, x, f"{path}/norm", norm, epsilon)
        offset = self._tensors.read(f"{role}.bias") if bias else None
        return self._linear(path, given, self._matrix(role), self.precision(role).activation_bits, offset)

    def _matrix(self, role: str) -> QuantizedTensor | FloatArray:
        statistics = None if self._calibration is None else self._calibration.of(role)
        quantized, record = quantize(self._tensors, role, self.precision(role), statistics)
        self._record(record)
        return self._tensors.read(f"{role}.weight") if quantized is None else quantized

    def _linear(
        self,
        path: str,
        x: LayerInput,
        matrix: QuantizedTensor | FloatArray,
        activation_bits: int,
        bias: FloatArray | None,
    ) -> ir.Value:
        if isinstance(matrix, QuantizedTensor):
            return self._form.matrix(path, matrix, activation_bits).linear(path, x, bias)
        return self._form.float_linear(path, x, matrix, bias)


def module_path(role: str) -> str:
    """`layers.0.attn.q_proj` -> `/model/layers.0/attn/q_proj`; the head stands outside the model."""
    if role == "lm_head":
        return "/lm_head"
    parts = role.split(".")
    return "/model/" + "/".join([".".join(parts[:2]), *parts[2:]] if parts[0] == "layers" else parts)
