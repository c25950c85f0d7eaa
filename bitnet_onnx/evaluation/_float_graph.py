"""The graph of a package with activations left as floats: what is wrong in it cannot hide behind rounding."""

from __future__ import annotations

from typing import Final

import onnx
import onnx_ir as ir

from bitnet_onnx.bitlinear import BitLinearAttributes
from bitnet_onnx.converters.onnx.bodies import LINEAR_ATTRIBUTES, MICROSOFT, Fallback, Variant, bitlinear_body
from bitnet_onnx.errors import InputError, PackageError
from bitnet_onnx.package_format import OPERATOR_DOMAIN
from bitnet_onnx.quantized import Grid

#: `accuracy_level` of `MatMulNBits`: float32.
_FLOAT_ACTIVATIONS: Final = 1


def leave_activations(model: onnx.ModelProto) -> None:
    """Set `activation_bits` of every linear layer to 0, and give it the function body of that.

    ONNX Runtime's own linear layers learn it by their accuracy level. Those of standard operators compute on floats
    unless ONNX Runtime makes others of them, which is up to the session.

    Raises:
        PackageError: a linear layer lacks an attribute, or has one that is impossible.
    """
    known = {(function.name, function.overload) for function in model.functions}
    for node in model.graph.node:
        if (node.domain, node.op_type) == (MICROSOFT, "MatMulNBits"):
            for attribute in node.attribute:
                if attribute.name == "accuracy_level":
                    attribute.i = _FLOAT_ACTIVATIONS
        if node.domain != OPERATOR_DOMAIN or node.op_type != "BitLinear":
            continue
        variant = _variant(node)
        for attribute in node.attribute:
            if attribute.name == "activation_bits":
                attribute.i = 0
        node.overload = variant.overload
        if (node.op_type, node.overload) not in known:
            known.add((node.op_type, node.overload))
            model.functions.append(ir.to_proto(bitlinear_body(variant)))


def _variant(node: onnx.NodeProto) -> Variant:
    values = {attribute.name: attribute for attribute in node.attribute}
    if missing := [name for name in LINEAR_ATTRIBUTES if name not in values]:
        raise PackageError(f"the graph's node {node.name!r:.80} has no attribute {missing[0]}")
    try:
        grid = Grid(values["bits"].i, values["zero_point"].i, values["group_size"].i)
        attributes = BitLinearAttributes(
            values["in_features"].i, values["out_features"].i, grid, 0, values["epsilon"].f
        )
    except InputError as error:
        raise PackageError(f"the graph's node {node.name!r:.80}: {error}") from error
    given = [bool(name) for name in node.input]
    return Variant(attributes, given[3:4] == [True], given[4:5] == [True], Fallback.EXACT)
