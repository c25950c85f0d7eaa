"""Faults that somebody might make in a shader, and the cases that must show them.

Run as a program, with the name of a fault, it runs the case of that fault on a sanitized library: status 0 if nothing
shows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from attention_models import AttentionCase
from metal_attention import Plan, attend
from metal_emulation import Edit, Emulation, structures
from metal_linear import MetalLinear, Variant, matmul, matvec, matvec_small
from packed_linears import random_linear

from bitnet_onnx.activations import quantize_activations, rms_norm
from bitnet_onnx.attention import AttentionAttributes
from bitnet_onnx.bitlinear import PackedLinear, bitlinear

#: Whether the device gives what it should.
Case = Callable[[Emulation], bool]

SEEDS = range(4)


def linear_case(
    variant: Variant, tokens: int = 9, rows: int = 45, columns: int = 200, bits: int = 4, group_size: int = 0
) -> Case:
    def case(device: Emulation) -> bool:
        linear = random_linear(rows, columns, bits=bits, group_size=group_size, zero_point=3)
        x = np.random.default_rng(1).standard_normal((tokens, columns)).astype(np.float32)
        return np.array_equal(MetalLinear(device, linear)(x, variant), bitlinear(x, linear))

    return case


def largest_sums(device: Emulation) -> bool:
    unpacked = random_linear(8, 1984, bits=8, zero_point=0).unpacked()
    raw = np.full((8, 1984), 255, np.uint8)
    raw[:, ::3] -= 1
    linear = PackedLinear.from_quantized(type(unpacked)(raw, unpacked.scale, unpacked.grid))
    x = np.ones((2, 1984), np.float32)
    x[1, ::5] = -126 / 127
    return np.array_equal(MetalLinear(device, linear)(x, matmul(True)), bitlinear(x, linear))


def quantize_case(group_size: int = 0, norm: bool = False, bad: float = 0.0) -> Case:
    def case(device: Emulation) -> bool:
        linear = random_linear(3, 333, group_size=group_size, norm=norm)
        x = np.random.default_rng(1).standard_normal((3, 333)).astype(np.float32)
        x[1] = np.arange(333) / 2
        x[1, 0] = 127
        x[2, 5] = bad
        got = MetalLinear(device, linear).quantize(x)
        if linear.norm_weight is not None:
            x = rms_norm(x, linear.norm_weight, linear.attributes.epsilon)
        codes, factor = quantize_activations(x)
        sums = np.add.reduceat(codes.astype(np.int32), np.arange(0, 333, group_size or 333), axis=1)
        return (
            np.array_equal(got.codes[:, :333], codes)
            and not got.codes[:, 333:].any()
            and np.array_equal(got.factor, factor, equal_nan=True)
            and np.array_equal(got.sums, sums)
        )

    return case


def norm_case(device: Emulation) -> bool:
    rng = np.random.default_rng(0)
    x, residual = rng.standard_normal((2, 8, 300)).astype(np.float32)
    y, total, weight = np.empty_like(x), np.empty_like(x), np.ones(300, np.float32)
    buffers = {"kNormX": x, "kNormResidual": residual, "kNormSum": total, "kNormY": y, "kNormWeight": weight}
    arguments = structures()["NormArguments"](width=300, epsilon=1e-5)
    settings = {"Simdgroups": 4, "Half": 0, "Norm": 1, "Residual": 1}
    device.run("rms_norm", arguments, settings, buffers, (8, 1, 1), ("kNormSum", "kNormY"))
    return np.array_equal(y, rms_norm(x + residual, weight, 1e-5))


def binary_case(device: Emulation) -> bool:
    a, y = np.ones(33, np.float32), np.empty(33, np.float32)
    buffers = {"kBinaryA": a, "kBinaryB": a, "kBinaryY": y}
    arguments = structures()["BinaryArguments"](count=33, b_count=33)
    settings = {"Simdgroups": 1, "Half": 0, "Operation": 0}
    device.run("binary", arguments, settings, buffers, (2, 1, 1), ("kBinaryY",))
    return bool((y == 2).all())


def attention_case(
    plan: Plan, window: int = -1, softcap: float = 0.0, int8: bool = False, rows: tuple[int, ...] = (139, 2)
) -> Case:
    attributes = AttentionAttributes(4, 2, do_rotary=True, local_window_size=window, softcap=softcap)
    counts = [3, 1][: len(rows)]
    case = AttentionCase(attributes, 24, 3, rows, 136, counts=counts, rotary_dim=16, separate=True, int8=int8)

    def run(device: Emulation) -> bool:
        # The reference, not the operator's library, which a sanitized process need not load.
        got, expected = attend(device, case, plan).output, case.expected().output
        return bool(np.abs(got - expected).max() <= 2e-5 * np.abs(expected).max())

    return run


@dataclass(frozen=True, slots=True)
class Fault:
    """A change of one shader.

    Attributes:
        shader: its stem.
        old: text that is replaced.
        new: by what.
        case: what must fail with one of SEEDS, or ...
        error: ... with an error of the device that has this text, or ...
        sanitizer: ... under AddressSanitizer, with this text.
        which: the occurrence of `old`, from 0.
    """

    shader: str
    old: str
    new: str
    case: Case
    error: str = ""
    sanitizer: str = ""
    which: int = 0

    @property
    def edit(self) -> Edit:
        def change(text: str) -> str:
            parts = text.split(self.old)
            if len(parts) <= self.which + 1:
                raise ValueError(f"{self.shader} has no {self.which + 1} times '{self.old}'")
            before = self.old.join(parts[: self.which + 1])
            return before + self.new + self.old.join(parts[self.which + 1 :])

        return change


BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
OVERFLOW = "heap-buffer-overflow"


def linear_fault(old: str, new: str, case: Case, which: int = 0, error: str = "", sanitizer: str = "") -> Fault:
    return Fault("bitlinear", old, new, case, error, sanitizer, which)


def attention_fault(old: str, new: str, case: Case, which: int = 0, error: str = "", sanitizer: str = "") -> Fault:
    return Fault("attention", old, new, case, error, sanitizer, which)


FEW, FEW_GROUPS = matvec_small(4, simdgroups=3, panels=4), linear_case(matvec_small(4, simdgroups=2), group_size=32)
SPLIT = Plan(rows=2, split=True)

FAULTS: dict[str, Fault] = {
    # Arithmetic.
    "zero point not taken off": linear_fault(
        "sum - int(linear.a->zero_point) * linear.sums[ulong(token) * linear.a->groups + group]",
        "sum",
        linear_case(matmul(False)),
    ),
    "rounded up in the middle": linear_fault(
        "rint(value * factor)", "float(int(value * factor + 0.5f))", quantize_case()
    ),
    "a token that is not finite": linear_fault(
        "finite != 0 ? factor : not_a_number()", "factor", quantize_case(bad=np.nan)
    ),
    "sums that a float does not hold": linear_fault(
        "kBits == 6 ? 2048 : 512", "kBits == 6 ? 2048 : 2048", largest_sums
    ),
    "codes of the padding not cleared": linear_fault("? a->padded :", "? a->in_features :", quantize_case(64)),
    "first group added to nothing": linear_fault("group == 0 ? term : y + term", "y + term", FEW_GROUPS),
    "lanes folded in another order": Fault(
        "norm",
        "sum = sum + simd_shuffle_xor(sum, 8);\n  sum = sum + simd_shuffle_xor(sum, 4);",
        "sum = sum + simd_shuffle_xor(sum, 4);\n  sum = sum + simd_shuffle_xor(sum, 8);",
        norm_case,
    ),
    "the high bit of 6": linear_fault("& 3) << 4", "& 1) << 4", linear_case(matmul(True), bits=6)),
    "masks: the high bit counts once": linear_fault(
        "low + (high << 1)", "low + high", linear_case(matvec(masks=1), tokens=1, bits=2)
    ),
    "window one too long": attention_fault(
        "a->window > last ? 0 : last - a->window",
        "a->window > last ? 0 : last - a->window - 1",
        attention_case(Plan(), 5),
    ),
    "softcap left out": attention_fault("a->softcap > 0.0f", "false", attention_case(Plan(), softcap=1.0)),
    "chunks merged without the later factor": attention_fault(
        "right = later * its;", "right = later;", attention_case(SPLIT)
    ),
    "int8 values not scaled": attention_fault(
        "result = result * value_scale[rows.head * a->head_dim + d];", "", attention_case(Plan(), int8=True)
    ),
    "outputs of padding not cleared": Fault(
        "rope", "output[(row * a->heads + head) * dim + d] = 0.0f;", "", attention_case(Plan())
    ),
    "rotation the wrong way round": Fault(
        "rope", "second ? along + across", "!second ? along + across", attention_case(Plan())
    ),
    # Barriers.
    "sums read before they are there": linear_fault(BARRIER, "", linear_case(FEW), which=4),
    "sums overwritten before they are read": linear_fault(BARRIER, "", FEW_GROUPS, which=3),
    "tiles overwritten before they are read": linear_fault(BARRIER, "", linear_case(matmul(True)), which=5),
    "tiles read before they are there": linear_fault(BARRIER, "", linear_case(matmul(True)), which=6),
    "products read before they are there": linear_fault(BARRIER, "", linear_case(matmul(True)), which=7),
    "the largest value read before it is there": linear_fault(BARRIER, "", quantize_case(), which=1),
    "the norm read before it is there": linear_fault(BARRIER, "", quantize_case(norm=True), which=0),
    "sum with the residual read before it is there": Fault(
        "norm", "threadgroup_barrier(mem_flags::mem_device);", "", norm_case
    ),
    "scores overwritten before they are read": attention_fault(BARRIER, "", attention_case(Plan()), which=0),
    "scores read before they are there": attention_fault(BARRIER, "", attention_case(Plan()), which=1),
    "exponentials read before they are there": attention_fault(BARRIER, "", attention_case(Plan()), which=2),
    "exponentials summed before they are there": attention_fault(
        "simdgroup_barrier(mem_flags::mem_threadgroup);", "", attention_case(Plan())
    ),
    # Divergence.
    "a lane that does not join in a sum": linear_fault(
        "sum = simd_sum(sum);",
        "if (lane < 31) sum = simd_sum(sum);",
        quantize_case(),
        error="kernel quantize_activations diverges: ",
    ),
    "rows beyond N return early": linear_fault(
        "float result[kTokensEach];",
        "float result[kTokensEach];\n  if (panel * kPanelRows + lane >= linear.a->out_features) return;",
        linear_case(matmul(True)),
        error="kernel matmul diverges: ",
    ),
    "keys beyond the end do not join in": attention_fault(
        "const float score = fold8(sums[r]);",
        "if (key >= end) break;\n        const float score = fold8(sums[r]);",
        attention_case(Plan()),
        error="kernel attention diverges: ",
    ),
    "matrices where some lanes are elsewhere": linear_fault(
        "simdgroup_multiply_accumulate(products[i]",
        "if (lane != 3) simdgroup_multiply_accumulate(products[i]",
        linear_case(matmul(True)),
        error="kernel matmul diverges: ",
    ),
    # Bounds.
    "rows beyond N written": linear_fault(
        "row >= linear.a->out_features ||", "", linear_case(matmul(False), tokens=1), sanitizer=OVERFLOW
    ),
    "tokens beyond M written": linear_fault(
        "|| token >= linear.a->tokens", "", linear_case(matvec_small(4), tokens=1), sanitizer=OVERFLOW
    ),
    "panels beyond the last read": linear_fault(
        "min(panel + p, last_panel)", "panel + p", linear_case(FEW, rows=33), sanitizer=OVERFLOW
    ),
    "keys beyond the end read": attention_fault(
        "ulong(min(key, end - 1))", "ulong(key)", attention_case(Plan(), rows=(139,)), sanitizer=OVERFLOW
    ),
    "elements beyond the end written": Fault(
        "elementwise", "if (i < arguments->count)", "if (true)", binary_case, sanitizer=OVERFLOW
    ),
}


def shows(device: Emulation, case: Case) -> bool:
    """Whether the case fails with one order of threads at least."""
    for seed in SEEDS:
        device.seed(seed)
        if not case(device):
            return True
    return False


if __name__ == "__main__":
    sys.exit(shows(Emulation.open(Path(sys.argv[2])), FAULTS[sys.argv[1]].case))
