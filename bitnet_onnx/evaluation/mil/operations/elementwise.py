"""Operations that take elements one by one, or in pairs with broadcasting."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from bitnet_onnx.evaluation.mil._call import Call, Result, is_float, operation
from bitnet_onnx.evaluation.mil._types import CAST_NAMES, Array, Element, Kind

_ERF: Final = np.vectorize(math.erf, otypes=[np.float64])

_UNARY: Final[dict[str, Callable[[Array], Any]]] = {
    "abs": np.abs,
    "acos": np.arccos,
    "asin": np.arcsin,
    "atan": np.arctan,
    "atanh": np.arctanh,
    "ceil": np.ceil,
    "cos": np.cos,
    "cosh": np.cosh,
    "exp": np.exp,
    "exp2": np.exp2,
    "floor": np.floor,
    "identity": np.array,
    "logical_not": np.logical_not,
    # Half to even.
    "round": np.rint,
    "sign": np.sign,
    "sin": np.sin,
    "sinh": np.sinh,
    "sqrt": np.sqrt,
    "square": np.square,
    "tan": np.tan,
    "tanh": np.tanh,
}
_BINARY: Final[dict[str, Callable[[Array, Array], Any]]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "pow": np.power,
    "real_div": np.divide,
    "floor_div": np.floor_divide,
    "mod": np.mod,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_xor": np.logical_xor,
}
_COMPARISONS: Final[dict[str, Callable[[Array, Array], Any]]] = {
    "equal": np.equal,
    "not_equal": np.not_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
}
_DIVISIONS: Final = {"real_div", "floor_div", "mod"}
#: Added to the operand of an operation that has no value at zero, where the program does not say what.
_EPSILON: Final = {"rsqrt": 1e-12, "inverse": 1e-4, "log": 1e-45}


def erf(x: Array) -> Array:
    """The error function, in double precision."""
    result: Array = _ERF(x) if x.size else x.astype(np.float64)
    return result


@operation(*_UNARY)
def unary(call: Call) -> Array:
    """One function of each element."""
    x = call.array("x")
    if call.operation.type == "logical_not" and x.dtype != np.bool_:
        raise call.fail(f"x is {call.element('x')}, expected booleans")
    return np.asarray(_UNARY[call.operation.type](x))


@operation("erf")
def error_function(call: Call) -> Array:
    """The error function."""
    return erf(call.array("x")).astype(np.float32)


@operation("rsqrt", "inverse", "log")
def with_epsilon(call: Call) -> Array:
    """`1 / sqrt(x + epsilon)`, `1 / (x + epsilon)`, `log(x + epsilon)`."""
    name = call.operation.type
    epsilon = call.number("epsilon", _EPSILON[name])
    if call.element("x") is Element.FLOAT16 and not call.has("epsilon"):
        epsilon = float(np.float16(epsilon))
    x = call.array("x") + np.float32(epsilon)
    if name == "log":
        return np.asarray(np.log(x))
    return np.asarray(np.float32(1) / (np.sqrt(x) if name == "rsqrt" else x))


@operation("clip")
def clip(call: Call) -> Array:
    """Limited from both sides."""
    low, high = np.float32(call.number("alpha")), np.float32(call.number("beta"))
    return np.asarray(np.minimum(np.maximum(call.array("x"), low), high))


@operation("threshold")
def threshold(call: Call) -> Array:
    """Limited from below."""
    x = call.array("x")
    return np.asarray(np.maximum(x, np.asarray(call.number("alpha"), x.dtype)))


@operation(*_BINARY, operands=("x", "y"))
def binary(call: Call) -> Array:
    """One function of pairs of elements."""
    x, y = call.array("x"), call.array("y")
    call.broadcast(x, y)
    name = call.operation.type
    if name.startswith("logical") and x.dtype != np.bool_:
        raise call.fail(f"x is {call.element('x')}, expected booleans")
    if name in _DIVISIONS and not is_float(x) and not y.all():
        raise call.fail("y holds a zero, which integers are not divided by")
    if name == "pow" and not is_float(x) and (y < 0).any():
        raise call.fail("y holds a negative exponent of an integer")
    return np.asarray(_BINARY[name](x, y))


@operation(*_COMPARISONS, operands=("x", "y"), result=Result.BOOL)
def comparison(call: Call) -> Array:
    """A boolean for each pair of elements."""
    x, y = call.array("x"), call.array("y")
    call.broadcast(x, y)
    return np.asarray(_COMPARISONS[call.operation.type](x, y))


@operation("select", operands=("a", "b"), moves=True)
def select(call: Call) -> Array:
    """Elements of `a` where `cond` is true, otherwise of `b`."""
    condition, a, b = call.array("cond"), call.array("a"), call.array("b")
    if condition.dtype != np.bool_:
        raise call.fail(f"cond is {call.element('cond')}, expected booleans")
    call.broadcast(condition, a, b)
    return np.where(condition, a, b)


@operation("cast", result=Result.DECLARED)
def cast(call: Call) -> Array:
    """Elements of another type; floats are cut towards zero, and nothing wraps around."""
    x, name = call.array("x"), call.text("dtype")
    target = CAST_NAMES.get(name)
    if target is None or target.kind is Kind.STRING:
        raise call.fail(f"dtype is {name!r:.40}, which is no type of numbers")
    if call.operation.outputs and getattr(call.operation.outputs[0].type, "element", None) is not target:
        raise call.fail(f"dtype is {name}, the output is declared {call.operation.outputs[0].type}")
    if target.kind is Kind.INTEGER and x.size and x.dtype != np.bool_:
        limits = np.iinfo(target.stored)
        cut = np.trunc(x) if is_float(x) else x
        if not (np.isfinite(cut).all() and cut.min() >= limits.min and cut.max() <= limits.max):
            raise call.fail(f"x holds {x.min()} to {x.max()}, {name} holds {limits.min} to {limits.max}")
        return cut.astype(target.computed)
    return x.astype(target.computed)
