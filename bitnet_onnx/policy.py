"""Which precision each layer gets."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from bitnet_onnx.activations import check_activation_bits
from bitnet_onnx.by_rows import MatrixRows, recognize, to_grid, to_integer, to_ternary
from bitnet_onnx.errors import InputError
from bitnet_onnx.integer import integer_grid
from bitnet_onnx.quantization.method import MethodName
from bitnet_onnx.quantization.registry import METHODS
from bitnet_onnx.quantization.statistics import InputStatistics
from bitnet_onnx.quantized import GROUP_MULTIPLE, TERNARY, FloatArray, Grid, QuantizedTensor


class Weights(enum.StrEnum):
    """Names of the weight precisions."""

    AUTO = "auto"
    KEEP = "keep"
    TERNARY = "ternary"
    INT2 = "int2"
    INT4 = "int4"
    INT6 = "int6"
    INT8 = "int8"
    FLOAT32 = "float32"


_BITS = {Weights.INT2: 2, Weights.INT4: 4, Weights.INT6: 6, Weights.INT8: 8}

_OTHERWISE = (Weights.INT4, Weights.INT6, Weights.INT8, Weights.FLOAT32)

#: The two roles that `Policy.head` covers; one matrix where they are tied.
HEAD_ROLES = ("embed_tokens", "lm_head")

#: The head's rounding errors reach the logits as they are, and one layer of many costs little at 16 bits.
HEAD_ACTIVATION_BITS = 16

#: Columns that share a scale in 4- and 6-bit weights when the user names no number: the smallest group, which
#: costs one bit a weight and a third less error than 64.
DEFAULT_GROUP_SIZE = 32


def default_group_size(weights: Weights) -> int:
    """The group size of a precision when the user names none: int8 is fine enough for one scale a row."""
    return 0 if weights is Weights.INT8 else DEFAULT_GROUP_SIZE


def bits_of(weights: Weights) -> int:
    """Bits of a code of these weights.

    Raises:
        ValueError: they are no codes, or of no certain precision.
    """
    if weights is Weights.TERNARY:
        return TERNARY.bits
    if weights not in _BITS:
        raise ValueError(f"weights are {weights}, expected {', '.join(_BITS)} or {Weights.TERNARY}")
    return _BITS[weights]


def weights_of(grid: Grid) -> Weights:
    """The precision of codes on a grid."""
    if grid.is_ternary:
        return Weights.TERNARY
    return {bits: name for name, bits in _BITS.items()}[grid.bits]


@dataclass(frozen=True, slots=True)
class Precision:
    """How the weights of one layer are stored, and what they are multiplied with.

    Attributes:
        weights: `auto` keeps a matrix that already is ternary or stored in codes and makes any other what `otherwise`
            says; `keep` is the same but stores any other as float32; `ternary` keeps a ternary matrix and quantizes any
            other; `int2`, `int4`, `int6`, `int8` are integers; `float32` stores floats.
        group_size: columns that share a scale, for the integer precisions; 0 for one scale a row.
        activation_bits: of the layer's input where the weights are quantized: 8 or 16, or 0 for floats.
        otherwise: what `auto` makes of a matrix that is not ternary.
        method: how floats are put on the grid.
    """

    weights: Weights
    group_size: int = DEFAULT_GROUP_SIZE
    activation_bits: int = 8
    otherwise: Weights = Weights.INT4
    method: MethodName = MethodName.AUTO

    def __post_init__(self) -> None:
        if self.group_size < 0 or self.group_size % GROUP_MULTIPLE:
            raise InputError(f"group size is {self.group_size}: it must be 0 (one scale a row) or a multiple of 32")
        if self.otherwise not in _OTHERWISE:
            raise InputError(f"otherwise is {self.otherwise}: it must be int4, int6, int8 or float32")
        check_activation_bits(self.activation_bits)

    @property
    def of_floats(self) -> Weights:
        """What becomes of a matrix of floats that is not ternary."""
        match self.weights:
            case Weights.AUTO:
                return self.otherwise
            case Weights.KEEP:
                return Weights.FLOAT32
            case _:
                return self.weights

    @property
    def keeps_ternary(self) -> bool:
        """Whether a matrix that already is ternary stays as it is."""
        return self.weights in {Weights.AUTO, Weights.KEEP, Weights.TERNARY}

    def keeps(self, grid: Grid) -> bool:
        """Whether a matrix that is stored in codes of `grid` stays as it is: what is asked for, or any with `auto`."""
        if self.weights in (Weights.AUTO, Weights.KEEP):
            return True
        if self.weights is Weights.TERNARY:
            return weights_of(grid) is self.weights
        return self.weights is not Weights.FLOAT32 and self.grid == grid

    def quantize(self, weight: FloatArray, statistics: InputStatistics | None = None) -> QuantizedTensor | None:
        """Quantize a float32 matrix `[N, K]`, or return None where it stays float32."""
        rows, columns = weight.shape
        given = MatrixRows((rows, columns), lambda start, stop: weight[start:stop])
        return self.quantize_rows(given, statistics)[0]

    def quantize_rows(
        self, rows: MatrixRows, statistics: InputStatistics | None = None
    ) -> tuple[QuantizedTensor | None, float]:
        """Quantize a matrix of floats that is read a few rows at a time.

        Args:
            rows: the matrix.
            statistics: of its inputs.

        Returns:
            The matrix, or None where it stays float32; and its relative error.
        """
        exact = recognize(rows) if self.keeps_ternary else None
        if exact is not None:
            return exact, 0.0
        if self.of_floats is Weights.FLOAT32:
            return None, 0.0
        match method := self.chosen_method(statistics):
            case MethodName.ABSMEAN if self.of_floats is Weights.TERNARY:
                return to_ternary(rows)
            case MethodName.ROUND if self.of_floats is not Weights.TERNARY:
                return to_integer(rows, self.grid.bits, self.grid.group_size)
            case _:
                quantize = METHODS[method]
                return to_grid(rows, self.grid, lambda part: quantize(part, self.grid, statistics))

    @property
    def grid(self) -> Grid:
        """What a matrix of floats is put on, where it does not stay one."""
        match self.of_floats:
            case Weights.TERNARY:
                absmean = self.method in {MethodName.AUTO, MethodName.ABSMEAN}
                return TERNARY if absmean else replace(TERNARY, group_size=self.group_size)
            case chosen:
                return integer_grid(_BITS[chosen], self.group_size)

    def chosen_method(self, statistics: InputStatistics | None) -> MethodName:
        """What `auto` stands for."""
        if self.method is not MethodName.AUTO:
            return self.method
        if self.of_floats is Weights.TERNARY:
            return MethodName.ABSMEAN
        if statistics is None or not statistics.moment:
            return MethodName.ROUND
        # At 8 bits the error of activations hides that of weights, however they were rounded.
        return MethodName.RTN if self.of_floats is Weights.INT8 else MethodName.GPTQ


@dataclass(frozen=True, slots=True)
class Policy:
    """A precision for every layer: a default, the head's, and overrides by glob.

    Attributes:
        default: for the linear layers of the blocks.
        head: for the vocabulary head and the embedding (one matrix where they are tied).
        overrides: pairs of a glob over layer roles (`layers.0.mlp.*`, `lm_head`) and a precision; the last
            match wins.
    """

    default: Precision = Precision(Weights.AUTO)
    head: Precision = Precision(Weights.AUTO, 0, HEAD_ACTIVATION_BITS, otherwise=Weights.INT8)
    overrides: tuple[tuple[str, Precision], ...] = ()

    def __post_init__(self) -> None:
        for role in HEAD_ROLES:
            if self.precision(role).weights is Weights.TERNARY:
                raise InputError(
                    f"{role} cannot be made ternary: choose auto or keep, which leave a ternary one as it is, "
                    f"or int8, int6, int4 or float32"
                )

    def base(self, role: str) -> Precision:
        """What a layer gets where no override says otherwise."""
        return self.head if role in HEAD_ROLES else self.default

    def precision(self, role: str) -> Precision:
        """The precision of a layer, by its role (`layers.3.attn.q_proj`, `embed_tokens`, `lm_head`)."""
        chosen = self.base(role)
        for glob, precision in self.overrides:
            if fnmatchcase(role, glob):
                chosen = precision
        return chosen
