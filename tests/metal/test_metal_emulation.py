"""The emulation itself: what it gives, and that it refuses what a GPU would do anything with."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from metal_emulation import Emulation, MetalError, build, translator

KERNELS = """\
#include <metal_simdgroup_matrix>
#include <metal_stdlib>
using namespace metal;

constant uint kChoice [[function_constant(17)]];
constant bool kChosen = kChoice != 0;

kernel void simd_operations(device int* y [[buffer(1)]], uint lane [[thread_index_in_simdgroup]],
                            uint index [[thread_index_in_threadgroup]]) {
  const int x = int(lane) + 1;
  y[8 * index] = simd_sum(x);
  y[8 * index + 1] = simd_max(x);
  y[8 * index + 2] = simd_shuffle_xor(x, 5);
  y[8 * index + 3] = simd_shuffle(x, ushort(31 - lane));
  y[8 * index + 4] = simd_broadcast(x, 7);
}

kernel void product(device const float* x [[buffer(1)]], device float* y [[buffer(2)]]) {
  simdgroup_float8x8 a, b;
  simdgroup_load(a, x, 8);
  simdgroup_load(b, x + 64, 8);
  simdgroup_float8x8 c = make_filled_simdgroup_matrix<float, 8, 8>(1.0f);
  simdgroup_multiply_accumulate(c, a, b, c);
  simdgroup_store(c, y, 8);
}

kernel void positions(device uint* y [[buffer(1)]], uint3 group [[threadgroup_position_in_grid]],
                      uint3 groups [[threadgroups_per_grid]], uint index [[thread_index_in_threadgroup]],
                      uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const uint number = (group.z * groups.y + group.y) * groups.x + group.x;
  y[number * 64 + index] = 1000 * number + 100 * simdgroup + index;
}

kernel void reversed(device int* y [[buffer(1)]], uint index [[thread_index_in_threadgroup]]) {
  threadgroup int all[64];
  all[index] = int(index);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[index] = all[63 - index];
}

kernel void reversed_too_early(device int* y [[buffer(1)]], uint index [[thread_index_in_threadgroup]]) {
  threadgroup int all[64];
  all[index] = int(index);
  y[index] = all[63 - index];
}

kernel void uninitialized(device float* y [[buffer(1)]], uint index [[thread_index_in_threadgroup]]) {
  threadgroup float all[64];
  y[index] = all[index];
}

kernel void diverges(device int* y [[buffer(1)]], uint lane [[thread_index_in_simdgroup]]) {
  if (lane < 31) {
    y[0] = simd_sum(1);
  }
}

kernel void two_sums(device int* y [[buffer(1)]], uint lane [[thread_index_in_simdgroup]]) {
  if (lane % 2 == 0) {
    y[0] = simd_sum(1);
  } else {
    y[0] = simd_sum(2);
  }
}

kernel void returns_early(device int* y [[buffer(1)]], uint index [[thread_index_in_threadgroup]]) {
  if (index >= 33) {
    return;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[index] = 0;
}

kernel void groups_part(device int* y [[buffer(1)]], uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  if (simdgroup == 0) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  y[simdgroup] = 0;
}

kernel void optional_buffer(device int* y [[buffer(1)]], device const int* x [[buffer(2), function_constant(kChosen)]],
                            uint index [[thread_index_in_threadgroup]]) {
  y[index] = kChosen ? x[index] : -1;
}
"""


class Number(ctypes.Structure):
    _fields_ = (("value", ctypes.c_uint32),)


@pytest.fixture(scope="module")
def extra(opened: Emulation) -> Emulation:
    return Emulation.open(build(extra=KERNELS))


def run(
    device: Emulation,
    kernel: str,
    y: np.ndarray,
    grid: tuple[int, int, int] = (1, 1, 1),
    simdgroups: int = 2,
    x: np.ndarray | None = None,
    **settings: int,
) -> np.ndarray:
    buffers = {"kUnaryX": y} if x is None else {"kUnaryX": y, "kUnaryY": x}
    device.run(kernel, Number(), {"Simdgroups": simdgroups, **settings}, buffers, grid, ("kUnaryX",))
    return y


def line_of(text: str, occurrence: int = 1) -> int:
    position = -1
    for _ in range(occurrence):
        position = KERNELS.index(text, position + 1)
    return KERNELS.count("\n", 0, position) + 1


def test_operations_of_a_simd_group(extra: Emulation) -> None:
    got = run(extra, "simd_operations", np.empty((64, 8), np.int32))
    lanes = np.arange(64) % 32
    np.testing.assert_array_equal(got[:, 0], 528)
    np.testing.assert_array_equal(got[:, 1], 32)
    np.testing.assert_array_equal(got[:, 2], (lanes ^ 5) + 1)
    np.testing.assert_array_equal(got[:, 3], 32 - lanes)
    np.testing.assert_array_equal(got[:, 4], 8)


def test_matrices(extra: Emulation) -> None:
    x = np.random.default_rng(0).integers(-9, 9, (2, 8, 8)).astype(np.float32)
    y = np.empty((8, 8), np.float32)
    buffers = {"kUnaryX": x, "kUnaryY": y}
    extra.run("product", Number(), {"Simdgroups": 1}, buffers, (1, 1, 1), ("kUnaryY",))
    np.testing.assert_array_equal(y, x[0] @ x[1] + 1)


@pytest.mark.parametrize("seed", [0, 1])
def test_positions(extra: Emulation, seed: int) -> None:
    extra.seed(seed)
    got = run(extra, "positions", np.empty((24, 64), np.uint32), grid=(2, 3, 4))
    number, index = np.mgrid[:24, :64]
    np.testing.assert_array_equal(got, 1000 * number + 100 * (index // 32) + index)


@pytest.mark.parametrize("seed", range(4))
def test_a_missing_barrier_shows(extra: Emulation, seed: int) -> None:
    extra.seed(seed)
    expected = np.arange(63, -1, -1)
    np.testing.assert_array_equal(run(extra, "reversed", np.empty(64, np.int32)), expected)
    assert (run(extra, "reversed_too_early", np.empty(64, np.int32)) != expected).any()


def test_memory_is_poisoned(extra: Emulation) -> None:
    assert np.isnan(run(extra, "uninitialized", np.empty(64, np.float32))).all()
    # A second run must not find what the first has left.
    run(extra, "reversed", np.empty(64, np.int32))
    assert np.isnan(run(extra, "uninitialized", np.empty(64, np.float32), grid=(3, 1, 1))).all()


@pytest.mark.parametrize(
    ("kernel", "parts"),
    [
        ("diverges", ("simd_sum at extra:{simd_sum(1):1}", "has returned")),
        ("two_sums", ("simd_sum at extra:{simd_sum(1):2}", "simd_sum at extra:{simd_sum(2):1}")),
        ("returns_early", ("threadgroup_barrier at extra:{threadgroup_barrier:2}", "has returned")),
        ("groups_part", ("threadgroup_barrier at extra:{threadgroup_barrier:3}", "has returned")),
    ],
)
def test_divergence_is_an_error(extra: Emulation, kernel: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(MetalError) as caught:
        run(extra, kernel, np.empty(64, np.int32))
    text = str(caught.value)
    assert f"kernel {kernel} diverges" in text
    for part in parts:
        before, _, place = part.partition("{")
        if place:
            what, _, occurrence = place.rstrip("}").rpartition(":")
            part = f"{before}{line_of(what, int(occurrence))}"
        assert part in text
    # The device is as good as before.
    np.testing.assert_array_equal(run(extra, "reversed", np.empty(64, np.int32)), np.arange(63, -1, -1))


def test_optional_buffers(extra: Emulation) -> None:
    x = np.arange(64, dtype=np.int32)
    assert (run(extra, "optional_buffer", np.empty(64, np.int32), Operation=0) == -1).all()
    np.testing.assert_array_equal(run(extra, "optional_buffer", np.empty(64, np.int32), x=x, Operation=1), x)
    with pytest.raises(MetalError, match="kernel optional_buffer: buffer 2 is not bound"):
        run(extra, "optional_buffer", np.empty(64, np.int32), Operation=1)
    with pytest.raises(MetalError, match=r"function constant 17 \(kChoice\) is used"):
        run(extra, "optional_buffer", np.empty(64, np.int32))


def test_wrong_dispatches(extra: Emulation) -> None:
    with pytest.raises(MetalError, match="there is no kernel nothing"):
        run(extra, "nothing", np.empty(64, np.int32))
    with pytest.raises(MetalError, match="the grid is empty"):
        run(extra, "reversed", np.empty(64, np.int32), grid=(1, 0, 1))
    with pytest.raises(MetalError, match="at most 1024 threads"):
        run(extra, "reversed", np.empty(64, np.int32), simdgroups=33)
    with pytest.raises(MetalError, match="must be a multiple of 4 within a buffer"):
        extra.run("positions", Number(), {"Simdgroups": 2}, {"kUnaryX": (np.empty(8, np.int32), 9)}, (1, 1, 1))


def test_batches_run_in_order_and_when_they_are_waited_for(extra: Emulation) -> None:
    library = extra.library
    buffer = ctypes.c_void_p(library.BitnetMetalAllocate(ctypes.c_void_p(extra.device), ctypes.c_size_t(4)))
    value, seen = ctypes.c_float.from_address(library.BitnetMetalContents(buffer)), ctypes.c_float()
    assert np.isnan(value.value)
    value.value = 3
    error = ctypes.create_string_buffer(1000)
    device = ctypes.c_void_p(extra.device)
    assert library.BitnetMetalTwoBatches(device, buffer, ctypes.byref(seen), error, ctypes.c_size_t(1000)) == 0
    assert (seen.value, value.value) == (3, 24)
    library.BitnetMetalFree(buffer)


def test_what_the_translator_refuses() -> None:
    """A form that it does not know would run as something else."""
    signature = "kernel void k(device int* y [[buffer(1)]]{}) {{\n{}}}\n"
    with pytest.raises(SystemExit, match="stands on a line of its own"):
        translator().to_cpp(signature.format("", "  threadgroup int a[2], b[2];\n"))
    with pytest.raises(SystemExit, match=r"attribute \[\[thread_position_in_grid\]\] is not known"):
        translator().to_cpp(signature.format(", uint i [[thread_position_in_grid]]", ""))
    with pytest.raises(SystemExit, match="has no attribute of a known form"):
        translator().to_cpp(signature.format(", uint i", ""))
