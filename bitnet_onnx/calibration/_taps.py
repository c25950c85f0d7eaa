"""Where the inputs of linear layers stand in the graph of a float package."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from bitnet_onnx.converters.onnx._linear_layers import module_path
from bitnet_onnx.decoder import ATTENTION_INPUTS, DecoderSpec
from bitnet_onnx.errors import PackageError
from bitnet_onnx.policy import HEAD_ROLES


@dataclass(frozen=True, slots=True)
class Tap:
    """The input of some linear layers.

    Attributes:
        value: its name in the graph.
        roles: the layers that read it.
        features: its width.
    """

    value: str
    roles: tuple[str, ...]
    features: int


def find_taps(graph: onnx.GraphProto, spec: DecoderSpec) -> list[Tap]:
    """The inputs of all linear layers of the blocks and of the head, in the order of the graph.

    Raises:
        PackageError: a linear layer has no node.
    """
    inputs = {node.name: node.input[0] for node in graph.node if node.input}
    shapes = dict(spec.matrices())
    found: dict[str, list[str]] = {}
    for role in shapes:
        if role in {*HEAD_ROLES, "project_in", "project_out"}:
            continue
        names = [f"{module_path(role)}/MatMul", f"{merged_path(role)}/MatMul"]
        value = next((inputs[name] for name in names if name in inputs), None)
        if value is None:
            raise PackageError(f"the graph has no node {names[0]}: convert the checkpoint again")
        found.setdefault(value, []).append(role)
    head = "embed_tokens" if spec.tie_word_embeddings else "lm_head"
    found.setdefault(inputs[f"{module_path('lm_head')}/flat/Reshape"], []).append(head)
    return [Tap(value, tuple(roles), shapes[roles[0]][1]) for value, roles in found.items()]


def precision_units(spec: DecoderSpec) -> list[tuple[str, ...]]:
    """Layers that are one node where they share a precision, and the matrices of head and embedding."""
    units: dict[str, list[str]] = {}
    for role, _ in spec.matrices():
        joint = role not in HEAD_ROLES and spec.linear_norm_epsilon is None
        units.setdefault(merged_path(role) if joint else module_path(role), []).append(role)
    return [tuple(roles) for roles in units.values()]


def merged_path(role: str) -> str:
    """The module path of the node in which a linear layer of a block is with those that read the same input."""
    parent, _, name = role.rpartition(".")
    if name in ATTENTION_INPUTS:
        return module_path(f"{parent}.qkv_proj")
    return module_path(f"{parent}.gate_up_proj" if name in {"gate_proj", "up_proj"} else role)
