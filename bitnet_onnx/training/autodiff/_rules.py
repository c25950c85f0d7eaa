"""The table of rules: how gradients of a node's inputs come from those of its outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import onnx_ir as ir

from bitnet_onnx.training.autodiff._tape import Tape

#: Reads `tape.gradient(output)` and calls `tape.give(input, ...)`; it may leave unneeded nodes behind.
Rule = Callable[[Tape, ir.Node], None]

#: By operator of the domain of ONNX.
RULES: Final[dict[str, Rule]] = {}


def rule(*op_types: str) -> Callable[[Rule], Rule]:
    """Enter a function as the rule of operators."""

    def enter(function: Rule) -> Rule:
        for op_type in op_types:
            RULES[op_type] = function
        return function

    return enter


def first_input(node: ir.Node) -> ir.Value:
    """The input that an operator cannot be without."""
    return operand(node, 0)


def operand(node: ir.Node, index: int) -> ir.Value:
    """An input that an operator cannot be without."""
    value = node.inputs[index]
    if value is None:
        raise ValueError(f"node '{node.name}' ({node.op_type}) lacks input {index}")
    return value
