from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from bitnet_onnx.training.engines._liveness import peak_bytes

_DIMS = {"B": 4, "T": 64}
_BLOCK = 4 * 4 * 64


def _peak(body: str, *, output: str = "float[B,T] y") -> int:
    text = f'<ir_version: 8, opset_import: ["": 17]> g (float[B,T] x, float[64,32] w) => ({output}) {{ {body} }}'
    return peak_bytes(ir.from_proto(onnx.parser.parse_model(text)), _DIMS)


@pytest.mark.parametrize(
    ("body", "blocks"),
    [
        ("a = Exp(x) b = Exp(a) y = Exp(b)", 1),  # over itself
        ("y = Exp(x)", 0),  # the caller has a place for it
        ("a = Exp(x) b = Exp(a) y = Mul(a, b)", 2),  # both are needed at the end
        ("a = Exp(x) b = Mul(a, a) y = Exp(b)", 1),  # the last two readings are one
        ("a = Exp(x) b = Transpose<perm=[1, 0]>(a) c = Exp(b) y = Transpose<perm=[1, 0]>(c)", 2),
        ("a = Exp(x) b = Exp(x) c = Exp(x) d = Add(a, b) y = Add(c, d)", 3),
        ("unused = Exp(x) a = Exp(x) y = Exp(a)", 1),  # gone at once
    ],
)
def test_blocks_held_at_once(body: str, blocks: int) -> None:
    assert _peak(body) == blocks * _BLOCK


def test_another_shape_is_the_same_memory() -> None:
    assert _peak("s = Shape(x) f = Flatten(x) y = Reshape(f, s)") == 2 * 8
    assert _peak("a = Exp(x) f = Flatten(a) b = Exp(f) i = Identity(b) y = Exp(i)") == _BLOCK


def test_a_transpose_for_products_is_the_same_memory() -> None:
    assert _peak("t = Transpose<perm=[1, 0]>(w) a = MatMul(x, w) y = MatMul(a, t)") == _BLOCK // 2
    read_otherwise = "t = Transpose<perm=[1, 0]>(w) u = Exp(t) a = MatMul(x, w) y = MatMul(a, u)"
    assert _peak(read_otherwise) == _BLOCK // 2 + 4 * 64 * 32


def test_shapes_that_the_graph_computes_are_followed() -> None:
    body = (
        "s = Shape(x) two = Constant<value = int64[1] {2}>() zero = Constant<value = int64 {0}>() "
        "axis = Constant<value = int64[1] {0}>() b = Gather(s, zero) b1 = Unsqueeze(b, axis) "
        "rest = Constant<value = int64[1] {-1}>() n = Concat<axis=0>(b1, two, rest) "
        "a = Exp(x) r = Reshape(a, n) e = Exp(r) k = Transpose<perm=[1, 0, 2]>(e) p = Transpose<perm=[1, 0, 2]>(k) "
        "y = Reshape(p, s)"
    )
    assert 2 * _BLOCK <= _peak(body) < 2 * _BLOCK + 200
