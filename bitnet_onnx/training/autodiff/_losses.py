"""SoftmaxCrossEntropyLoss: its rule, and what it is computed by, as ONNX Runtime has no kernel of it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bitnet_onnx.training.autodiff._emitter import Attributes, Emitter, unsupported
from bitnet_onnx.training.autodiff._rules import operand, rule
from bitnet_onnx.training.autodiff._tape import Tape

CROSS_ENTROPY = "SoftmaxCrossEntropyLoss"


@rule(CROSS_ENTROPY)
def _cross_entropy(tape: Tape, node: ir.Node) -> None:
    """`dx = c (exp(log_prob) - onehot(label))` with `c` the gradient of one sample's loss: no one-hot is made."""
    x, loss, log_prob = operand(node, 0), node.outputs[0], node.outputs[1]
    if len(node.inputs) > 2 and tape.wants(node.inputs[2]):
        raise unsupported(node, "its class weights depend on a parameter")
    labels = _Labels(tape, node)
    gradient = tape.gradient(loss) if tape.has_gradient(loss) else tape.scalar(x, 0.0)
    one = labels.weights()
    if _reduction(node) == "mean":
        gradient = tape.op("Div", gradient, tape.op("ReduceSum", one, attributes={"keepdims": 0}))
    each = tape.op("Unsqueeze", tape.op("Mul", one, gradient), tape.ints(1))
    probability = tape.op("Exp", log_prob)
    if tape.has_gradient(log_prob):
        further = tape.gradient(log_prob)
        total = tape.op("ReduceSum", further, tape.ints(1), attributes={"keepdims": 1})
        spread = tape.op("Sub", further, tape.op("Mul", probability, tape.op("Sub", total, each)))
    else:
        spread = tape.op("Mul", probability, each)
    place = tape.op("Unsqueeze", labels.safe, tape.ints(1))
    attributes: Attributes = {"axis": 1, "reduction": "add"}
    tape.give(x, tape.op("ScatterElements", spread, place, tape.op("Neg", each), attributes=attributes))


def lower_losses(graph: ir.Graph) -> None:
    """Write each SoftmaxCrossEntropyLoss as LogSoftmax and a look-up of the labels."""
    losses_of = [node for node in graph if node.op_type == CROSS_ENTROPY and node.domain == ""]
    for number, node in enumerate(losses_of):
        emitter = Emitter(graph, f"loss/{number}")
        emitter.scope = node.name or ""
        x, (loss, log_prob) = operand(node, 0), node.outputs
        labels = _Labels(emitter, node)
        logs = emitter.op("LogSoftmax", x, attributes={"axis": 1})
        place = emitter.op("Unsqueeze", labels.safe, emitter.ints(1))
        picked = emitter.op(
            "Squeeze", emitter.op("GatherElements", logs, place, attributes={"axis": 1}), emitter.ints(1)
        )
        weights = labels.weights()
        losses = emitter.op("Neg", emitter.op("Mul", picked, weights))
        reduction = _reduction(node)
        if reduction != "none":
            losses = emitter.op("ReduceSum", losses, attributes={"keepdims": 0})
        if reduction == "mean":
            losses = emitter.op("Div", losses, emitter.op("ReduceSum", weights, attributes={"keepdims": 0}))
        graph.insert_before(node, emitter.nodes)
        for old, new in ((loss, losses), (log_prob, logs)):
            new.shape, new.type = old.shape, old.type
            name = old.name
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            new.name, old.name = name, None
        graph.remove(node, safe=True)


def _reduction(node: ir.Node) -> str:
    attribute = node.attributes.get("reduction")
    return "mean" if attribute is None else attribute.as_string()


class _Labels:
    """Labels of a loss, with class 0 in the place of ignored ones."""

    def __init__(self, emitter: Emitter, node: ir.Node) -> None:
        self._emitter, self._node = emitter, node
        labels = operand(node, 1)
        ignored = node.attributes.get("ignore_index")
        kind = (labels.dtype or ir.DataType.INT64).numpy()
        #: bool, of the labels that count; None where all do.
        self.counted: ir.Value | None = None
        self.safe = labels
        if ignored is not None:
            equal = emitter.op("Equal", labels, emitter.constant(np.array(ignored.as_int(), kind)))
            self.counted = emitter.op("Not", equal)
            self.safe = emitter.op("Where", self.counted, labels, emitter.constant(np.array(0, kind)))

    def weights(self) -> ir.Value:
        """Of each sample, 0 for ignored ones."""
        emitter, scores = self._emitter, operand(self._node, 0)
        given = self._node.inputs[2] if len(self._node.inputs) > 2 else None
        if given is not None:
            chosen = emitter.op("Gather", given, self.safe)
            return (
                chosen
                if self.counted is None
                else emitter.op("Where", self.counted, chosen, emitter.scalar(scores, 0.0))
            )
        if self.counted is not None:
            return emitter.op("Cast", self.counted, attributes={"to": (scores.dtype or ir.DataType.FLOAT).value})
        labels = operand(self._node, 1)
        return emitter.op("Expand", emitter.scalar(scores, 1.0), emitter.shape(labels))
