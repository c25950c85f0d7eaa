"""The matrix of shapes that the shaders of linear layers are tested with; as a program, under AddressSanitizer.

python metal_cases.py LIBRARY
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from metal_emulation import Emulation
from metal_linear import MetalLinear, Variant, matmul, matvec, matvec_small
from metal_mutations import FAULTS, shows
from packed_linears import random_linear

from bitnet_onnx.bitlinear import PackedLinear, bit_embedding, bitlinear

#: N, K: one column, less than a unit, a word more than a panel, odd sizes, several groups.
SIZES = [(1, 1), (5, 7), (32, 64), (33, 96), (45, 200), (97, 321), (130, 64)]
BITS = [2, 4, 6, 8]
GROUPS = [0, 32, 64, 96]


def same(got: np.ndarray, expected: np.ndarray) -> None:
    """Equal bits, but that any NaN is as good as another."""
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    either = np.isnan(got) & np.isnan(expected)
    width = np.uint16 if got.dtype == np.float16 else np.uint32
    unequal = np.argwhere((got.view(width) != expected.view(width)) & ~either)
    assert not unequal.size, f"{len(unequal)} of {got.size} differ, the first at {unequal[0]}"


def activations(tokens: int, columns: int, seed: int = 0) -> np.ndarray:
    """Random tokens; where there are several, also zeros, the extremes, and what is not finite."""
    rng = np.random.default_rng(seed + tokens)
    x = rng.standard_normal((tokens, columns)).astype(np.float32)
    if tokens > 4:
        x[1] = 0
        x[2] = np.where(rng.random(columns) < 0.5, -1, 1)
        x[3, -1] = np.nan
        x[4, 0] = np.inf
    if tokens > 8:
        x[5] *= 1e-30
        x[6] *= np.float32(1e30)
        x[7, : columns // 2] = -0.0
        x[8] = 127 / np.arange(1, columns + 1, dtype=np.float32)
    return x


def linears() -> Iterator[PackedLinear]:
    """All bits and groups; sizes, scales, zero points, norms and biases in turn."""
    number = 0
    for bits in BITS:
        for group_size in GROUPS:
            rows, columns = SIZES[number % len(SIZES)]
            yield random_linear(
                rows,
                columns,
                bits=bits,
                group_size=group_size,
                zero_point=[None, 0, 3, (1 << bits) - 1][number % 4],
                scale=["rows", "one"][number // 2 % 2],
                norm=number % 3 == 0,
                bias=number % 2 == 0,
            )
            number += 1


def variants(bits: int, tokens: int) -> Iterator[Variant]:
    """What a host would take for this number of tokens, and others."""
    yield matmul(False)
    yield matmul(True)
    yield matvec_small(min(tokens, 8), simdgroups=4, panels=1 if tokens > 4 else 4, unroll=2)
    if tokens == 1:
        yield matvec()
        yield matvec(simdgroups=8, panels=4, unroll=4)
    if bits == 2:
        yield matvec_small(3, simdgroups=2, panels=2, unroll=4, masks=1)
        if tokens == 1:
            yield matvec(simdgroups=3, panels=2, unroll=2, masks=1)


def main(library: Path) -> None:
    """All linears with one, some and many tokens, the embedding, and the cases of all faults without the fault."""
    device = Emulation.open(library)
    with np.errstate(invalid="ignore", over="ignore"):
        for linear in linears():
            on_device, count = MetalLinear(device, linear), linear.attributes.in_features
            for tokens in (1, 9, 33):
                x = activations(tokens, count)
                codes, expected = on_device.quantize(x), bitlinear(x, linear)
                for variant in variants(linear.attributes.grid.bits, tokens):
                    same(on_device.multiply(codes, variant), expected)
            ids = np.array([linear.attributes.out_features - 1], np.int64)
            same(on_device.embed(ids), bit_embedding(ids, linear))
        for name, fault in FAULTS.items():
            if shows(device, fault.case):
                raise SystemExit(f"the case of '{name}' fails without the fault")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.write("all cases pass\n")
