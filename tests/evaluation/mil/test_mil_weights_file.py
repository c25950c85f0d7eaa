"""Files of weights, and weights in codes, against coremltools' own reader and its own decompression."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mil_programs import INTEGERS, ct, mb, run, save, tensor

from bitnet_onnx.errors import PackageError
from bitnet_onnx.evaluation.mil._blob import BlobFile, unpack
from bitnet_onnx.evaluation.mil._types import Element, TensorType
from bitnet_onnx.evaluation.mil.interpreter import Interpreter, Mode
from bitnet_onnx.evaluation.mil.package import open_package

RANDOM = np.random.default_rng(11)
#: The writer's and the reader's methods.
METHODS = {"float16": "fp16", "float32": "float"}
ELEMENTS = [
    Element.FLOAT16,
    Element.FLOAT32,
    *(Element[f"{sign}INT{bits}"] for sign in ("", "U") for bits in (8, 16, 32)),
    *(Element[name.upper()] for name in INTEGERS),
]


def values_of(element: Element, count: int) -> np.ndarray:
    if str(element).startswith("float"):
        return RANDOM.normal(size=count).astype(element.stored)
    signed = element.name.startswith("INT")
    low, high = (-(1 << (element.bits - 1)), 1 << (element.bits - 1)) if signed else (0, 1 << element.bits)
    return RANDOM.integers(low, high, count).astype(element.stored)


@pytest.mark.parametrize("element", ELEMENTS, ids=str)
def test_every_type_as_coremltools_writes_and_reads_it(element: Element, tmp_path: Path) -> None:
    from coremltools.libmilstoragepython import _BlobStorageReader, _BlobStorageWriter

    path, values, name = tmp_path / "weight.bin", values_of(element, 3 * 37), METHODS.get(str(element), str(element))
    writer = _BlobStorageWriter(str(path))
    given = values.view(np.uint16) if element is Element.FLOAT16 else values
    offset = getattr(writer, f"write_{name}_data")(given.astype(INTEGERS[name]) if name in INTEGERS else given)
    other = writer.write_float_data(np.ones(3, np.float32))
    del writer
    read = getattr(_BlobStorageReader(str(path)), f"read_{name}_data")(offset)
    file = BlobFile(path)
    found = file.tensor(offset, TensorType(element, (3, 37)), "w")
    expected = values.astype(element.computed).reshape(3, 37)
    np.testing.assert_array_equal(found.rows(0, 3), expected)
    np.testing.assert_array_equal(found.rows(1, 2), expected[1:2])
    np.testing.assert_array_equal(found.flat(5, 41), expected.reshape(-1)[5:46])
    if element is not Element.FLOAT16:
        np.testing.assert_array_equal(np.asarray(read).astype(np.float64), values.astype(np.float64))
    np.testing.assert_array_equal(file.tensor(other, TensorType(Element.FLOAT32, (3,)), "o").rows(0, 3), [1, 1, 1])
    file.close()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([1, 2, 3, 4, 6]), st.lists(st.integers(0, 63), min_size=1, max_size=50))
def test_integers_of_less_than_a_byte_lie_from_the_lowest_bit_on(bits: int, numbers: list[int]) -> None:
    codes = [number % (1 << bits) for number in numbers]
    whole = sum(code << (bits * place) for place, code in enumerate(codes))
    data = np.frombuffer(whole.to_bytes(-(-len(codes) * bits // 8), "little"), np.uint8)
    assert unpack(data, Element[f"UINT{bits}"], len(codes)).tolist() == codes


INDICES = {bits: RANDOM.integers(0, 1 << bits, (6, 8)).astype(np.uint8) for bits in (1, 2, 3, 4, 6, 8)}
MASK = RANDOM.integers(0, 2, (6, 8)).astype(np.uint8)
SIGNS = RANDOM.integers(0, 2, int(MASK.sum())).astype(np.uint8)
FLOATS = RANDOM.normal(size=len(SIGNS)).astype(np.float16)
DATA = RANDOM.integers(-8, 8, (6, 8)).astype(np.int8)
SCALES = RANDOM.uniform(0.5, 2, (6, 4)).astype(np.float16)
OFFSETS = RANDOM.integers(-3, 3, (6, 4)).astype(np.int8)


def table(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float16)


TABLES = {bits: table(1, 1, 1 << bits, 1) for bits in INDICES}
ROWS, BLOCKS = table(6, 1, 4, 1), table(3, 2, 4, 1)
VECTORS = table(1, 2, 4, 3)


def typed(values: np.ndarray, name: str) -> np.ndarray:
    return values.astype(INTEGERS[name]) if name in INTEGERS else values


def scattered(values: np.ndarray) -> np.ndarray:
    dense = np.zeros(MASK.shape, np.float32)
    dense[MASK != 0] = values
    return dense


def sparse_signs(lut: np.ndarray) -> Any:
    mask, values = mb.constexpr_lut_to_sparse(
        indices_mask=typed(MASK, "uint1"), indices_nonzero_data=typed(SIGNS, "uint1"), lut=lut
    )
    return mb.constexpr_sparse_to_dense(nonzero_data=values, mask=mask)


def sparse_scaled() -> Any:
    mask, values = mb.constexpr_sparse_blockwise_shift_scale(
        data_mask=typed(MASK, "uint1"), nonzero_data=DATA[MASK != 0], scale=SCALES
    )
    return mb.constexpr_sparse_to_dense(nonzero_data=values, mask=mask)


SIGN_TABLE, SIGN_ROWS = np.float16([-0.5, 0.5]).reshape(1, 1, 2, 1), table(6, 1, 2, 1)
SIGN_DENSE = scattered(SIGNS).astype(int)
WIDE = SCALES.astype(np.float32)

#: By what is stored: what builds it, and its dense form.
STORED = {
    **{
        f"table of {bits} bits": (
            lambda bits=bits: mb.constexpr_lut_to_dense(indices=typed(INDICES[bits], f"uint{bits}"), lut=TABLES[bits]),
            TABLES[bits].reshape(-1)[INDICES[bits]],
        )
        for bits in INDICES
    },
    "table for each row": (
        lambda: mb.constexpr_lut_to_dense(indices=typed(INDICES[2], "uint2"), lut=ROWS),
        np.array([[ROWS[i, 0, INDICES[2][i, j], 0] for j in range(8)] for i in range(6)]),
    ),
    "table for each block": (
        lambda: mb.constexpr_lut_to_dense(indices=typed(INDICES[2], "uint2"), lut=BLOCKS),
        np.array([[BLOCKS[i // 2, j // 4, INDICES[2][i, j], 0] for j in range(8)] for i in range(6)]),
    ),
    "few indices, in the program itself": (
        lambda: mb.constexpr_lut_to_dense(indices=typed(INDICES[6][:1], "uint6"), lut=TABLES[6]),
        TABLES[6].reshape(-1)[INDICES[6][:1]],
    ),
    "few nibbles, in the program itself": (
        lambda: mb.constexpr_blockwise_shift_scale(data=typed(DATA[:1], "int4"), scale=np.float16([[2]])),
        2 * DATA[:1],
    ),
    "vectors": (
        lambda: mb.constexpr_lut_to_dense(indices=typed(INDICES[2], "uint2"), lut=VECTORS, vector_axis=0),
        np.array([[VECTORS[0, j // 4, INDICES[2][i // 3, j], i % 3] for j in range(8)] for i in range(18)]),
    ),
    "int4 in blocks": (
        lambda: mb.constexpr_blockwise_shift_scale(data=typed(DATA, "int4"), scale=SCALES),
        DATA * np.repeat(WIDE, 2, 1),
    ),
    "int8 in blocks with offsets": (
        lambda: mb.constexpr_blockwise_shift_scale(data=DATA, scale=SCALES, offset=OFFSETS),
        (DATA - np.repeat(OFFSETS, 2, 1)) * np.repeat(WIDE, 2, 1),
    ),
    "int8 with one scale": (
        lambda: mb.constexpr_blockwise_shift_scale(data=DATA, scale=np.float16([[0.25]])),
        DATA * np.float32(0.25),
    ),
    "int8 with scales of pairs of rows": (
        lambda: mb.constexpr_blockwise_shift_scale(data=DATA, scale=SCALES[:3, :1].copy()),
        DATA * np.repeat(WIDE[:3, :1], 2, 0),
    ),
    "sparse": (lambda: sparse_signs(SIGN_TABLE), scattered(SIGNS - 0.5)),
    "sparse with a table for each row": (
        lambda: sparse_signs(SIGN_ROWS),
        np.array([[SIGN_ROWS[i, 0, SIGN_DENSE[i, j], 0] if MASK[i, j] else 0 for j in range(8)] for i in range(6)]),
    ),
    "sparse floats": (
        lambda: mb.constexpr_sparse_to_dense(nonzero_data=FLOATS, mask=typed(MASK, "uint1")),
        scattered(FLOATS),
    ),
    "sparse and scaled": (sparse_scaled, np.where(MASK, DATA * np.repeat(WIDE, 2, 1), 0)),
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def body(x: Any) -> Any:
        built = [
            mb.linear(x=x, weight=build()) if name != "vectors" else mb.identity(x=build())
            for name, (build, _) in STORED.items()
        ]
        return [mb.identity(x=value, name=f"result_{index}") for index, value in enumerate(built)]

    return save(tmp_path_factory.mktemp("stored") / "p.mlpackage", [tensor(8, 8, dtype="float16")], body)


@pytest.mark.parametrize("name", STORED)
def test_weights_in_codes(name: str, stored: Path) -> None:
    """Applied to the identity a layer gives its weights."""
    expected = np.asarray(STORED[name][1], np.float32)
    found = run(stored, {"x": np.eye(8)}).outputs[f"result_{list(STORED).index(name)}"]
    np.testing.assert_array_equal(found, expected if name == "vectors" else expected.T)


def test_weights_are_the_same_kept_and_not_kept_and_a_row_at_a_time(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bitnet_onnx.evaluation.mil._stored as module

    with open_package(stored) as package:
        plain = Interpreter(package).run("main", {"x": np.eye(8)}).outputs
        kept = Interpreter(package, cache=1 << 20)
        once, again = (kept.run("main", {"x": np.eye(8)}).outputs for _ in range(2))
        monkeypatch.setattr(module, "CHUNK", 8)
        monkeypatch.setattr(module.steps, "__defaults__", (8,))
        parts = Interpreter(package).run("main", {"x": np.eye(8)}).outputs
    for name, value in plain.items():
        for other in (once, again, parts):
            np.testing.assert_array_equal(other[name], value)


def test_half_precision_rounds_weights(tmp_path: Path) -> None:
    scale = np.float16([[1 / 3]])

    def body(x: Any) -> Any:
        return mb.linear(x=x, weight=mb.constexpr_blockwise_shift_scale(data=DATA, scale=scale), name="y")

    path = save(tmp_path / "p.mlpackage", [tensor(8, 8, dtype="float16")], body)
    product = DATA.astype(np.float32).T * np.float32(scale[0, 0])
    np.testing.assert_array_equal(run(path, {"x": np.eye(8)}).outputs["y"], product)
    halves = product.astype(np.float16).astype(np.float32)
    assert (halves != product).any()
    np.testing.assert_array_equal(run(path, {"x": np.eye(8)}, Mode.FLOAT16).outputs["y"], halves)


def test_half_precision_rounds_the_products_with_all_of_them(stored: Path) -> None:
    wide, half = (run(stored, {"x": np.eye(8)}, mode).outputs for mode in Mode)
    for name, value in wide.items():
        np.testing.assert_array_equal(half[name], value.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("kind", ["lut", "sparse", "affine", "cast"])
def test_the_packed_forms_of_older_releases(kind: str, tmp_path: Path) -> None:
    values = np.float16([0.5, -1, 2, 4])
    codes = RANDOM.integers(0, 4, 35)
    mask = RANDOM.integers(0, 2, 35)
    scale, zero = np.float16([1, 2, 0.5, 4, 3]), np.int8([1, 0, -1, 2, 0])

    def body(x: Any) -> Any:
        if kind == "lut":
            bits = sum(int(code) << (2 * place) for place, code in enumerate(codes))
            packed = np.frombuffer(bits.to_bytes(9, "little"), np.uint8)
            weight = mb.constexpr_lut_to_dense(indices=packed, lut=values, shape=np.uint32([5, 7]))
        elif kind == "sparse":
            packed = np.packbits(mask, bitorder="little")
            nonzero = np.arange(1, mask.sum() + 1).astype(np.float16)
            weight = mb.constexpr_sparse_to_dense(nonzero_data=nonzero, mask=packed, shape=np.uint32([5, 7]))
        elif kind == "affine":
            weight = mb.constexpr_affine_dequantize(
                quantized_data=DATA.reshape(-1)[:35].reshape(5, 7), zero_point=zero, scale=scale, axis=0
            )
        else:
            weight = mb.cast(
                x=mb.constexpr_cast(source_val=np.arange(35, dtype=np.float16).reshape(5, 7), output_dtype="fp32"),
                dtype="fp16",
            )
        return mb.matmul(x=x, y=weight, transpose_y=True, name="y")

    counted = np.cumsum(mask) * mask
    expected = {
        "lut": values[codes].reshape(5, 7),
        "sparse": counted.reshape(5, 7),
        "affine": (DATA.reshape(-1)[:35].reshape(5, 7) - zero[:, None]) * scale[:, None],
        "cast": np.arange(35).reshape(5, 7),
    }
    path = save(tmp_path / "p.mlpackage", [tensor(7, 7, dtype="float16")], body, opset=ct.target.iOS16)
    np.testing.assert_array_equal(run(path, {"x": np.eye(7)}).outputs["y"], expected[kind].T)


def test_a_mask_must_name_as_many_elements_as_there_are(tmp_path: Path) -> None:
    path = save(
        tmp_path / "p.mlpackage",
        [tensor(8, 8, dtype="float16")],
        lambda x: mb.linear(x=x, weight=sparse_signs(SIGN_TABLE), name="y"),
    )
    file = path / "Data/com.apple.CoreML/weights/weight.bin"
    data = bytearray(file.read_bytes())
    packed = np.packbits(MASK.reshape(-1), bitorder="little").tobytes()
    place = data.index(packed)
    data[place] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(PackageError, match=r"a mask names \d+ elements, \d+ are stored"):
        run(path, {"x": np.eye(8)})
