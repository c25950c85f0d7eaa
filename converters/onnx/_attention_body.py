"""The function body of `bitnet::GroupQueryAttention`: ONNX Runtime's own operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from bitnet_onnx.attention import AttentionAttributes
from bitnet_onnx.converters.onnx.bodies import MICROSOFT, OPSET
from bitnet_onnx.package_format import OPERATOR_DOMAIN

OPERATOR: Final = "GroupQueryAttention"
ATTRIBUTES: Final = (
    "num_heads",
    "kv_num_heads",
    "do_rotary",
    "rotary_interleaved",
    "scale",
    "local_window_size",
    "softcap",
)
#: Position of `query_seqlens` in ONNX Runtime's operator; there it follows inputs that ours does not have.
_QUERY_SEQLENS: Final = 16


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """Which optional inputs a node has.

    Attributes:
        separate: key and value are inputs 1 and 2; otherwise input 0 holds all three.
        query_seqlens: input 9 is there.
    """

    separate: bool = False
    query_seqlens: bool = False


def attention_overload(attributes: AttentionAttributes, inputs: AttentionInputs) -> str:
    """The name of the body for these attributes and inputs."""
    at = attributes
    parts = [f"h{at.num_heads}", f"kv{at.kv_num_heads}"]
    if at.do_rotary:
        parts.append("rotary_interleaved" if at.rotary_interleaved else "rotary")
    if at.scale is not None:
        parts.append(f"scale{at.scale!r}")
    if at.local_window_size != -1:
        parts.append(f"window{at.local_window_size}")
    if at.softcap:
        parts.append(f"softcap{at.softcap!r}")
    if inputs.separate:
        parts.append("qkv")
    if inputs.query_seqlens:
        parts.append("ragged")
    return "_".join(parts)


def attention_body(attributes: AttentionAttributes, inputs: AttentionInputs) -> ir.Function:
    """The body for one set of attributes and inputs.

    Its attributes are literal: a reference to an attribute of the function could not be left out where the node
    leaves the attribute out.
    """
    names = [
        "query",
        "key" if inputs.separate else "",
        "value" if inputs.separate else "",
        "past_key",
        "past_value",
        "seqlens_k",
        "total_sequence_length",
        "cos_cache" if attributes.do_rotary else "",
        "sin_cache" if attributes.do_rotary else "",
        "query_seqlens" if inputs.query_seqlens else "",
    ]
    while not names[-1]:
        names.pop()
    # An input that the node leaves out still has its place in the function's signature.
    declared = [ir.Value(name=name or f"absent_{index}") for index, name in enumerate(names)]
    present = [value if name else None for name, value in zip(names, declared, strict=True)]
    operands = present[:9]
    if inputs.query_seqlens:
        operands = [*operands, *[None] * (_QUERY_SEQLENS - len(operands)), present[9]]
    outputs = [ir.Value(name=name) for name in ("output", "present_key", "present_value")]
    node = ir.node(OPERATOR, operands, attention_node_attributes(attributes), domain=MICROSOFT, outputs=outputs)
    graph = ir.Graph(declared, outputs, nodes=[node], opset_imports={"": OPSET, MICROSOFT: 1})
    floats = ("scale", "softcap")
    types = {name: ir.AttributeType.FLOAT if name in floats else ir.AttributeType.INT for name in ATTRIBUTES}
    signature = [ir.Attr(name, kind, None) for name, kind in types.items()]
    overload = attention_overload(attributes, inputs)
    return ir.Function(OPERATOR_DOMAIN, OPERATOR, overload, graph=graph, attributes=signature)


def attention_node_attributes(attributes: AttentionAttributes) -> dict[str, int | float]:
    """Attributes of a node, of either domain; what has its default is left out."""
    at = attributes
    result: dict[str, int | float] = {
        "num_heads": at.num_heads,
        "kv_num_heads": at.kv_num_heads,
        "do_rotary": int(at.do_rotary),
        "rotary_interleaved": int(at.rotary_interleaved),
    }
    if at.scale is not None:
        result["scale"] = float(at.scale)
    if at.local_window_size != -1:
        result["local_window_size"] = at.local_window_size
    if at.softcap:
        result["softcap"] = float(at.softcap)
    return result
