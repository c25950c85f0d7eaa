"""Ternary types of GGUF: codes and scales as they were packed, and values as ggml computes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nst
from ternary_gguf import LAYOUTS, Layout, Stored, floats, write_raw
from tiny_checkpoints import HEAD_DIM, HEADS, bpe_metadata
from tiny_gguf import metadata, to_pairs

from bitnet_onnx.converters import convert
from bitnet_onnx.converters.checkpoints import Checkpoint, open_checkpoint
from bitnet_onnx.converters.checkpoints._gguf_quantized import collapse
from bitnet_onnx.converters.checkpoints._gguf_ternary import block_codes
from bitnet_onnx.converters.checkpoints._types import GGUF_TYPES
from bitnet_onnx.converters.model import open_model
from bitnet_onnx.errors import UnsupportedError
from bitnet_onnx.inspection import inspect
from bitnet_onnx.policy import Weights
from bitnet_onnx.quantized import TERNARY, Grid, QuantizedTensor

NAME = "model.embed_tokens.weight"


def write(path: Path, layout: Layout, codes: Any, scales: Any, **changes: Any) -> Path:
    """A file whose embedding holds the codes."""
    rows, columns = codes.shape
    pairs = metadata("llama", embedding_length=columns, vocab_size=rows, rope__dimension_count=None, **changes)
    tensor = Stored("token_embd.weight", codes.shape, layout.type_id, layout.matrix(codes, scales))
    return write_raw(path, pairs, [tensor, floats("output_norm.weight", np.ones(columns))])


def opened_with(path: Path, layout: Layout) -> Checkpoint:
    return open_checkpoint(path, i2s_layout="x86" if layout.name == "I2_S" else None)


def quantized(checkpoint: Checkpoint, name: str = NAME) -> QuantizedTensor:
    found = checkpoint.read_quantized(name)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ternary")


@st.composite
def matrices(draw: st.DrawFn) -> tuple[Layout, Any, Any]:
    layout = LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))]
    rows, groups = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    highest = 3 if layout.name.startswith(("TQ2", "Q2")) and draw(st.booleans()) else 2
    elements = st.integers(0, highest)
    codes = draw(nst.arrays(np.uint8, (rows, groups * max(layout.block, 64)), elements=elements, fill=elements))
    groups = codes.shape[1] // layout.block
    values = st.sampled_from([0.0, 0.5, 1.25, 2.0**-24, 65504.0])
    scales = draw(nst.arrays(np.float32, (rows, groups), elements=values, fill=values))
    if layout.name == "I2_S":
        scales[:] = scales[0, 0]
    return layout, codes, scales


@given(matrices())
@settings(max_examples=150)
def test_round_trip(folder: Path, matrix: tuple[Layout, Any, Any]) -> None:
    layout, codes, scales = matrix
    if layout.name.startswith("Q2_0") and codes.size < 2048:  # both layouts would need as much room
        codes, scales = np.repeat(codes, 32, axis=0), np.repeat(scales, 32, axis=0)
    expected = (codes.astype(np.float32) - 1) * np.repeat(scales, layout.block, axis=1)
    with opened_with(write(folder / "x.gguf", layout, codes, scales), layout) as checkpoint:
        found = quantized(checkpoint)
        np.testing.assert_array_equal(found.dequantize(), expected)
        np.testing.assert_array_equal(checkpoint.read(NAME), expected)
        np.testing.assert_array_equal(checkpoint.read_rows(NAME, 0, 1), expected[:1])
    wide = ((codes == 3) & (np.repeat(scales, layout.block, axis=1) > 0)).any()
    assert (found.grid.bits, found.grid.zero_point) == ((2, 1) if wide else (2, 2))
    assert found.grid.group_size in {0, layout.block}
    assert (found.scale > 0).all()


@pytest.mark.parametrize("kind", [Type.TQ1_0, Type.TQ2_0])
def test_values_are_those_of_the_package(folder: Path, kind: Type) -> None:
    """For what its quantizer writes and for arbitrary bytes: digits of a byte that no quantizer writes count too."""
    random = np.random.default_rng(2)
    blocks = random.integers(0, 256, (300, GGUF_TYPES[kind].nbytes), dtype=np.uint8)
    blocks[:256, :] = np.arange(256, dtype=np.uint8)[:, None]
    blocks[:, -2:] = np.frombuffer(np.float16(0.75).tobytes(), np.uint8)
    written = gguf.quants.quantize(random.standard_normal((300, 256)).astype(np.float32), kind)
    for raw in (blocks, written.reshape(300, -1)):
        pairs = metadata("llama", embedding_length=256, vocab_size=300, rope__dimension_count=None)
        stored = Stored("token_embd.weight", (300, 256), int(kind), raw.tobytes())
        with open_checkpoint(write_raw(folder / "y.gguf", pairs, [stored])) as checkpoint:
            reference = gguf.quants.dequantize(raw, kind)
            np.testing.assert_array_equal(checkpoint.read(NAME), reference)
            np.testing.assert_array_equal(quantized(checkpoint).dequantize(), reference)


@pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0"])
def test_packers_agree_with_the_package(name: str) -> None:
    random = np.random.default_rng(4)
    codes = random.integers(0, 3, (7, 256), dtype=np.uint8)
    codes[:, 0] = 2  # the quantizer takes the largest magnitude as scale
    values = (codes.astype(np.float32) - 1) * np.float32(0.5)
    ours = LAYOUTS[name].matrix(codes, np.full((7, 1), 0.5))
    assert ours == gguf.quants.quantize(values, Type[name]).tobytes()
    raw = np.frombuffer(ours, np.uint8).reshape(7, -1)
    np.testing.assert_array_equal(block_codes(GGUF_TYPES[Type[name]], raw), codes)


# --- scales --------------------------------------------------------------------------------------------------


def test_scales_collapse_without_loss() -> None:
    def check(scale: list[list[float]], expected: list[Any]) -> None:
        found = collapse(np.array(scale, np.float32))
        np.testing.assert_array_equal(found, np.array(expected, np.float32))

    check([[2, 2], [2, 2]], [2])
    check([[2, 0], [0, 2]], [2])
    check([[2, 2], [0, 0], [3, 3]], [2, 3, 3])
    check([[2, 0], [0, 3]], [2, 3])
    check([[2, 3], [2, 2]], [[2, 3], [2, 2]])
    check([[2, 3], [0, 4], [0, 0]], [[2, 3], [4, 4], [4, 4]])
    check([[0, 0]], [1])


def test_group_sizes(tmp_path: Path) -> None:
    codes = np.full((40, 512), 2, np.uint8)
    for name, layout in LAYOUTS.items():
        scales = np.full((40, 512 // layout.block), 0.5)
        with opened_with(write(tmp_path / f"{name}.gguf", layout, codes, scales), layout) as checkpoint:
            assert quantized(checkpoint).scale.shape == (1,)
            assert quantized(checkpoint).grid == TERNARY
        if name == "I2_S":
            continue
        scales[3] = 0.25
        with opened_with(write(tmp_path / f"{name}.gguf", layout, codes, scales), layout) as checkpoint:
            np.testing.assert_array_equal(quantized(checkpoint).scale, scales[:, 0])
        scales[3, 1] = 2
        with opened_with(write(tmp_path / f"{name}.gguf", layout, codes, scales), layout) as checkpoint:
            np.testing.assert_array_equal(quantized(checkpoint).scale, scales)
            assert quantized(checkpoint).grid == Grid(2, 2, layout.block)


def test_a_late_code_of_two_widens_the_whole_matrix(tmp_path: Path) -> None:
    layout = LAYOUTS["Q2_0-64"]
    codes = np.random.default_rng(1).integers(0, 3, (5000, 512), dtype=np.uint8)  # more than one chunk
    codes[-1, -1] = 3
    scales = np.full((5000, 8), 0.5, np.float32)
    scales[17] = 0
    packed = np.zeros((5000 * 8, 18), np.uint8)
    packed[:, :2] = scales.astype("<f2").reshape(-1, 1).view(np.uint8)
    for place in range(4):
        packed[:, 2:] |= codes.reshape(-1, 16, 4)[:, :, place] << np.uint8(2 * place)
    pairs = metadata("llama", embedding_length=512, vocab_size=5000, rope__dimension_count=None)
    stored = Stored("token_embd.weight", codes.shape, layout.type_id, packed.tobytes())
    with open_checkpoint(write_raw(tmp_path / "x.gguf", pairs, [stored])) as checkpoint:
        found = quantized(checkpoint)
        assert found.grid == Grid(2, 1)
        assert found.scale.tolist() == [0.5]
        codes[17] = 1
        np.testing.assert_array_equal(found.raw, codes)
        np.testing.assert_array_equal(checkpoint.read(NAME), found.dequantize())


# --- layouts of one id ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("name", ["Q2_0-64", "Q2_0-128"])
def test_q2_0_is_told_apart_by_room(tmp_path: Path, name: str, pad: bool) -> None:
    """The last tensor by the end of the file, with padding after it and without; one that fits both by the other."""
    layout = LAYOUTS[name]
    random = np.random.default_rng(0)
    codes = {(rows, 256): random.integers(0, 3, (rows, 256), dtype=np.uint8) for rows in (1, 40)}
    small, large = (
        layout.matrix(values, np.ones(values.size // layout.block)) for values in (codes[1, 256], codes[40, 256])
    )
    pairs = metadata("llama", embedding_length=256, vocab_size=40, rope__dimension_count=None, feed_forward_length=1)
    stored = [
        Stored("blk.0.ffn_gate.weight", (1, 256), layout.type_id, small),  # 72 and 68 bytes: both take 96
        Stored("token_embd.weight", (40, 256), layout.type_id, large),
    ]
    with open_checkpoint(write_raw(tmp_path / "x.gguf", pairs, stored, pad=pad)) as checkpoint:
        for target, key in ((NAME, (40, 256)), ("model.layers.0.mlp.gate_proj.weight", (1, 256))):
            np.testing.assert_array_equal(quantized(checkpoint, target).signed(), codes[key].astype(np.int16) - 1)
            assert checkpoint.tensors[target].dtype == "Q2_0"


def test_i2_s_in_a_tensor_of_another_size_than_floats(tmp_path: Path) -> None:
    """The scale and its padding come once for the tensor, and the next one begins after them."""
    layout = LAYOUTS["I2_S"]
    codes = np.random.default_rng(0).integers(0, 3, (40, 128), dtype=np.uint8)
    path = write(tmp_path / "x.gguf", layout, codes, np.full((40, 1), 0.7))
    with open_checkpoint(path, i2s_layout="x86") as checkpoint:
        assert checkpoint.tensors[NAME].nbytes == 40 * 128 // 4 + 32
        assert quantized(checkpoint).scale.tolist() == [float(np.float32(0.7))]
        np.testing.assert_array_equal(checkpoint.read_rows(NAME, 39, 40), (codes[39:] - 1.0) * np.float32(0.7))
        np.testing.assert_array_equal(checkpoint.read("model.norm.weight"), np.ones(128))


def write_model(path: Path, layout: Layout, codes: Mapping[str, Any]) -> Path:
    """A whole model of one layer, whose linear layers are `codes` by their names."""
    tokens, width = bpe_metadata(), 128
    rows = len(tokens["tokenizer.ggml.tokens"])
    pairs = (
        metadata("llama", embedding_length=width, feed_forward_length=width, vocab_size=rows, block_count=1) | tokens
    )
    pairs |= {"llama.rope.dimension_count": 32, "llama.attention.head_count_kv": 4}
    scales = np.full(1 if layout.name == "I2_S" else width * width // layout.block, 0.5)
    stored = [
        floats("token_embd.weight", np.ones((rows, width))),
        *(
            floats(name, np.ones(width))
            for name in ("output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight")
        ),
        *(
            Stored(f"blk.0.{name}.weight", (width, width), layout.type_id, layout.matrix(matrix, scales))
            for name, matrix in codes.items()
        ),
    ]
    return write_raw(path, pairs, stored)


LINEARS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def test_the_layout_reaches_a_model_that_is_opened_for_conversion(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    codes = {name: random.integers(0, 3, (128, 128), dtype=np.uint8) for name in LINEARS}
    path = write_model(tmp_path / "x.gguf", LAYOUTS["I2_S"], codes)
    with pytest.raises(UnsupportedError, match="--i2s-layout x86"), open_model(path):
        pass
    with open_model(path, i2s_layout="x86") as model:
        found = model.tensors.quantized("layers.0.attn.v_proj")
        assert found is not None
        np.testing.assert_array_equal(found.signed(), codes["attn_v"].astype(np.int16) - 1)
        assert model.tensors.quantized("embed_tokens") is None


def test_a_matrix_of_four_values_is_not_called_ternary(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    codes = {name: random.integers(0, 3, (128, 128), dtype=np.uint8) for name in LINEARS}
    codes["ffn_up"][3, 5] = 3
    path = write_model(tmp_path / "x.gguf", LAYOUTS["Q2_0-64"], codes)
    package = convert(path, tmp_path / "package")
    stored = {layer.role: layer for layer in package.layers if layer.role.startswith("layers.")}
    assert {role for role, layer in stored.items() if layer.weights is Weights.INT2} == {"layers.0.mlp.up_proj"}
    assert {layer.relative_error for layer in stored.values()} == {0.0}
    (again,) = (layer for layer in inspect(package.path).layers if layer.role == "layers.0.mlp.up_proj")
    assert again.stored == "int2"
    with open_model(package.path) as reopened:
        found = reopened.tensors.quantized("layers.0.mlp.up_proj")
        assert found is not None
        np.testing.assert_array_equal(found.signed(), codes["ffn_up"].astype(np.int16) - 1)


# --- rows, factors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0", "Q2_0-64", "Q2_0-128", "I2_S"])
@pytest.mark.parametrize("scales", ["tensor", "rows", "groups"])
def test_rows_of_q_are_unpaired_with_their_scales(tmp_path: Path, name: str, scales: str) -> None:
    layout, random = LAYOUTS[name], np.random.default_rng(6)
    rows, columns = HEADS * HEAD_DIM, 512
    codes = random.integers(0, 3, (rows, columns), dtype=np.uint8)
    codes[:, ::64] = 2
    scale = np.full((rows, columns // layout.block), 0.5)
    if scales != "tensor" and name != "I2_S":
        scale = np.repeat(np.arange(1.0, rows + 1)[:, None], columns // layout.block, axis=1)
    if scales == "groups" and name != "I2_S":
        scale[:, 0] += 0.5

    def paired(array: Any) -> Any:
        return np.concatenate([to_pairs(array[start : start + HEAD_DIM]) for start in range(0, rows, HEAD_DIM)])

    pairs = metadata(
        "llama", embedding_length=columns, vocab_size=40, attention__key_length=HEAD_DIM, rope__dimension_count=None
    )
    stored = [
        floats("token_embd.weight", np.ones((40, columns))),
        Stored("blk.0.attn_q.weight", codes.shape, layout.type_id, layout.matrix(paired(codes), paired(scale))),
        floats("output_norm.weight", np.ones(columns)),
    ]
    target = "model.layers.0.self_attn.q_proj.weight"
    with opened_with(write_raw(tmp_path / "x.gguf", pairs, stored), layout) as checkpoint:
        found = quantized(checkpoint, target)
        np.testing.assert_array_equal(found.signed(), codes.astype(np.int16) - 1)
        expected = (codes.astype(np.float32) - 1) * np.repeat(scale, layout.block, axis=1).astype(np.float32)
        np.testing.assert_array_equal(found.dequantize(), expected)
        np.testing.assert_array_equal(checkpoint.read(target), expected)
        np.testing.assert_array_equal(checkpoint.read_rows(target, 9, 23), expected[9:23])
        assert checkpoint.read_quantized(NAME) is None


def test_scale_tensors_of_bitnet_are_factors(tmp_path: Path, opened: Callable[[Path], Checkpoint]) -> None:
    layout = LAYOUTS["TQ2_0"]
    codes = np.random.default_rng(0).integers(0, 3, (8, 256), dtype=np.uint8)
    pairs = metadata("bitnet", embedding_length=256, attention__head_count=4)
    stored = [
        floats("token_embd.weight", np.ones((40, 256))),
        Stored("blk.0.attn_q.weight", (8, 256), layout.type_id, layout.matrix(codes, np.ones((8, 1)))),
        floats("blk.0.attn_q.scale", np.array([0.375])),
        floats("blk.1.ffn_down.weight", np.full((256, 8), 2.0)),
        floats("blk.1.ffn_down.scale", np.array([0.25])),
    ]
    checkpoint = opened(write_raw(tmp_path / "x.gguf", pairs, stored, architecture="bitnet"))
    q_proj, down = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"
    assert set(checkpoint.tensors) == {NAME, q_proj, down}
    assert quantized(checkpoint, q_proj).scale.tolist() == [0.375]
    np.testing.assert_array_equal(checkpoint.read(q_proj), (codes - 1.0) * 0.375)
    np.testing.assert_array_equal(checkpoint.read_rows(q_proj, 2, 4), (codes[2:4] - 1.0) * 0.375)
    assert (checkpoint.read(down) == 0.5).all()
    assert checkpoint.read_quantized(down) is None


def test_a_transposed_matrix_is_read_as_floats(tmp_path: Path) -> None:
    """Its scales would run across the rows that transformers has."""
    layout = LAYOUTS["TQ2_0"]
    codes = np.random.default_rng(0).integers(0, 3, (8, 256), dtype=np.uint8)
    stored = [
        floats("token_embd.weight", np.ones((40, 256))),
        Stored("blk.0.ffn_up.weight", codes.shape, layout.type_id, layout.matrix(codes, np.ones((8, 1)))),
    ]
    pairs = metadata("gpt2", embedding_length=256)
    target = "transformer.h.0.mlp.c_fc.weight"
    with open_checkpoint(write_raw(tmp_path / "x.gguf", pairs, stored, architecture="gpt2")) as checkpoint:
        assert checkpoint.read_quantized(target) is None
        np.testing.assert_array_equal(checkpoint.read(target), codes.T - 1.0)
        np.testing.assert_array_equal(checkpoint.read_rows(target, 7, 9), codes.T[7:9] - 1.0)
