"""Activations of a package at other bits than its file says."""

from __future__ import annotations

import onnx

from bitnet_onnx.activations import check_activation_bits
from bitnet_onnx.errors import InputError, UnsupportedError
from bitnet_onnx.package_format import OPERATOR_DOMAIN

#: The head keeps what conversion gave it instead of 8 bits: its errors reach the logits as they are.
_HEAD = "/lm_head/"
_FEWEST = 8


def set_activation_bits(model: onnx.ModelProto, bits: int, *, library: bool) -> None:
    """Make the linear layers of integer weights multiply with activations of `bits`.

    Args:
        model: the graph; changed in place.
        bits: 8 or 16, or 0 for floats. The vocabulary head takes 16 and 0, and stays as it is with 8.
        library: the operator library runs it. The function bodies of a file are for the bits that it names.

    Raises:
        InputError: there are no such bits, or no layer that rounds activations.
        UnsupportedError: the library is needed and not there.
    """
    check_activation_bits(bits)
    layers = [node for node in model.graph.node if node.domain == OPERATOR_DOMAIN and node.op_type == "BitLinear"]
    if bits and not layers:
        raise InputError(
            f"activations of {bits} bits need layers of integer weights, and this package has none: "
            f"leave the activations as they are, or convert the checkpoint with integer weights"
        )
    for node in layers:
        if bits == _FEWEST and node.name.startswith(_HEAD):
            continue
        for attribute in node.attribute:
            if attribute.name == "activation_bits" and attribute.i != bits:
                if not library:
                    raise UnsupportedError(
                        f"the package computes with activations of {attribute.i} bits, and other ones need the "
                        f"operator library: leave the activations as they are, or install it (see `bitnet-onnx ops`)"
                    )
                attribute.i = bits
