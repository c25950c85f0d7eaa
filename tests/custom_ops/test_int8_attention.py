"""`bitnet::GroupQueryAttention` with int8 keys and values, against the numpy reference and ONNX Runtime's operator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from attention_models import MICROSOFT, OURS, AttentionCase, attention_model, node_attributes, open_model
from onnx import TensorProto, helper, numpy_helper

from bitnet_onnx.attention import Attended, AttentionAttributes
from bitnet_onnx.custom_ops import library_path

TOLERANCE = 2e-5

HEADS = [(4, 4), (6, 2), (3, 1), (4, 1), (5, 1)]
CALLS = {
    "first token": (1, [1, 1], 0),
    "prompt": (5, [5], 0),
    "ragged prompts": (7, [7, 4, 1], 0),
    "ragged decode": (1, [301, 18], 300),
    "chunk": (20, [150], 130),
    "chunk in a longer buffer": (3, [33], 200),
}
VARIANTS = {
    "plain": {"do_rotary": False},
    "rotary": {"do_rotary": True},
    "interleaved": {"do_rotary": True, "rotary_interleaved": True},
    "window": {"do_rotary": True, "local_window_size": 3},
    "window over chunks": {"do_rotary": False, "local_window_size": 150},
    "softcap and scale": {"do_rotary": True, "softcap": 2.0, "scale": 0.5},
}


def check(case: AttentionCase, got: Attended, expected: Attended) -> int:
    """Outputs agree, and codes but for one step; how many codes differ."""
    # Of ours, because the padding of the runtime's output may hold anything.
    largest = np.abs(got.output).max()
    differences = 0
    for row, (total, count) in enumerate(zip(case.totals, case.new, strict=True)):
        np.testing.assert_allclose(got.output[row, :count], expected.output[row, :count], atol=TOLERANCE * largest)
        for mine, its in ((got.present_key, expected.present_key), (got.present_value, expected.present_value)):
            assert (mine.shape, mine.dtype) == (its.shape, np.int8)
            apart = np.abs(mine[row, :, :total].astype(int) - its[row, :, :total])
            assert apart.max(initial=0) <= 1
            differences += np.count_nonzero(apart)
    return differences


@pytest.mark.parametrize("head_dim", [16, 64, 128])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("call", CALLS)
def test_equals_the_reference_and_the_runtime(call: str, variant: str, head_dim: int) -> None:
    sequence, totals, past = CALLS[call]
    for heads in HEADS[:2] if head_dim != 64 else HEADS:
        attributes = AttentionAttributes(*heads, **VARIANTS[variant])
        case = AttentionCase(attributes, head_dim, sequence, totals, past, separate=heads[0] == 6, int8=True)
        got = case.run()
        assert check(case, got, case.expected()) == 0
        # The runtime may rotate with fused products, which can move a value across the middle of two codes.
        assert check(case, got, case.run(MICROSOFT)) <= got.present_key.size // 1000


@pytest.mark.parametrize("head_dim", [8, 24, 256, 512])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 8])
def test_other_lengths_of_heads(head_dim: int, group: int) -> None:
    case = AttentionCase(AttentionAttributes(2 * group, 2, True), head_dim, 3, [140, 3], 137, int8=True, counts=[3, 2])
    assert check(case, case.run(), case.expected()) == 0


def test_mixed_prefill_and_decode() -> None:
    """Rows of one call add 5, 1, 3 and no tokens to caches of different lengths; the rest is padding."""
    case = AttentionCase(AttentionAttributes(6, 2, True), 32, 5, [145, 61, 3, 7], 150, counts=[5, 1, 3, 0], int8=True)
    got = case.run()
    assert check(case, got, case.expected()) == 0
    check(case, got, case.run(MICROSOFT))
    for row, count in enumerate(case.new):
        assert not got.output[row, count:].any()
        assert not got.present_key[row, :, case.totals[row] :].any()


def test_is_close_to_float() -> None:
    """With scales that fit, the error is that of 8 bits."""
    case = AttentionCase(AttentionAttributes(6, 2, True), 64, 300, [300], 0)
    expected = case.run()
    int8 = AttentionCase(case.attributes, 64, 300, [300], 0, int8=True)
    int8.tensors.update({name: case.tensors[name] for name in ("query", "key", "value")})
    for name, cache in (("key", expected.present_key), ("value", expected.present_value)):
        int8.tensors[f"{name}_scale"] = np.abs(cache[0]).max(axis=1) / np.float32(127)
    error = int8.run().output - expected.output
    assert 0 < np.linalg.norm(error) / np.linalg.norm(expected.output) < 0.01


def test_new_rows_are_read_back_from_the_cache() -> None:
    """A token sees its own key and value as later tokens will."""
    case = AttentionCase(AttentionAttributes(1, 1, False), 8, 1, [1], 0, int8=True)
    case.tensors["value"][:] = 0.26
    case.tensors["value_scale"][:] = 0.1
    np.testing.assert_array_equal(case.run().output, np.full((1, 1, 8), np.float32(3) * np.float32(0.1)))


def test_codes_beyond_the_tokens_are_not_read() -> None:
    case = AttentionCase(AttentionAttributes(4, 2, False), 16, 2, [60, 140], 256, int8=True)
    expected = case.run().output
    for name in ("past_key", "past_value"):
        for row, total in enumerate(case.totals):
            case.tensors[name][row, :, total - 2 :] = 127
    output, _ = case.run_in_place()
    np.testing.assert_array_equal(output, expected)


def test_nan_in_a_query_stays_in_its_row() -> None:
    case = AttentionCase(AttentionAttributes(4, 2, True), 16, 3, [3, 3], 0, int8=True)
    clean = case.run().output
    case.tensors["query"][0, 1, 0] = np.nan
    spoiled = case.run().output
    assert np.isnan(spoiled[0, 1, :16]).all()
    spoiled[0, 1, :16] = clean[0, 1, :16]
    np.testing.assert_array_equal(spoiled, clean)


@pytest.mark.parametrize("domain", [OURS, MICROSOFT])
def test_what_cannot_be_stored(domain: str) -> None:
    """NaN and what lies above becomes 127, what lies below -128: as in ONNX Runtime."""
    case = AttentionCase(AttentionAttributes(1, 1, False), 16, 1, [1], 0, int8=True)
    row = [np.nan, np.inf, -np.inf, 1e38, -1e38, 127.5, -128.5, -129, 0.5, 1.5, 2.5, -0.5, -1.5, -0.0, 1e-40, 126.5]
    codes = [127, 127, -128, 127, -128, 127, -128, -128, 0, 2, 2, 0, -2, 0, 0, 126]
    for name in ("key", "value"):
        case.tensors[name][0, 0] = row
        case.tensors[f"{name}_scale"][:] = 1
    got = case.run(domain)
    np.testing.assert_array_equal(got.present_key[0, 0, 0], codes)
    np.testing.assert_array_equal(got.present_value[0, 0, 0], codes)
    np.testing.assert_array_equal(got.output[0, 0], codes)


@pytest.mark.parametrize("value", [0.0, 1e38, -1e38, 1e-40, np.inf, -np.inf])
def test_activations_at_the_limits(value: float) -> None:
    case = AttentionCase(AttentionAttributes(4, 2, False), 16, 4, [20], 16, int8=True)
    for name in ("key", "value"):
        case.tensors[name][:] = value
    assert check(case, case.run(), case.expected()) == 0


@pytest.mark.parametrize("scale", [np.finfo(np.float32).tiny, 1e-30, 1e30, 1e36])
def test_scales_at_the_limits(scale: float) -> None:
    case = AttentionCase(AttentionAttributes(4, 2, True), 16, 4, [20], 16, int8=True)
    case.tensors["value_scale"][:] = scale
    got, expected = case.run(), case.expected()
    np.testing.assert_array_equal(got.present_value, expected.present_value)
    np.testing.assert_allclose(got.output, expected.output, atol=TOLERANCE * np.abs(expected.output).max())


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("int8", [False, True])
def test_the_cache_type_is_inferred(int8: bool, declared: bool) -> None:
    """One name for both types: the runtime finds the kernel and the types of the outputs by past_key."""
    case = AttentionCase(AttentionAttributes(4, 2, True), 16, 1, [4], 4, int8=int8)
    model = onnx.load_from_string(attention_model(case.feeds(), node_attributes(case.attributes)))
    (node,) = model.graph.node
    node.output[1] = "inner"
    model.graph.node.append(helper.make_node("Identity", ["inner"], ["present_key"]))
    if declared:
        cache = TensorProto.INT8 if int8 else TensorProto.FLOAT
        model.graph.value_info.append(helper.make_tensor_value_info("inner", cache, [1, 2, 4, 16]))
    got = open_model(model.SerializeToString()).run(None, case.feeds())
    np.testing.assert_array_equal(got[1], case.run().present_key)


@pytest.mark.parametrize(
    ("int8", "drop", "message"),
    [
        (True, ["key_scale"], "key_scale is missing; past_key and past_value are int8 and need it"),
        (True, ["value_scale"], "value_scale is missing; past_key and past_value are int8 and need it"),
        (True, ["key_scale", "value_scale"], "key_scale is missing; past_key and past_value are int8 and need it"),
        (False, [], "key_scale is there; past_key and past_value are float and must be int8"),
        (False, ["key_scale"], "value_scale is there; past_key and past_value are float and must be int8"),
    ],
)
def test_scales_belong_to_int8(int8: bool, drop: list[str], message: str) -> None:
    case = AttentionCase(AttentionAttributes(4, 2, True), 16, 1, [4], 4, int8=int8)
    scale = np.ones((2, 16), np.float32)
    feeds = case.feeds() | {"key_scale": scale, "value_scale": scale}
    for name in drop:
        del feeds[name]
    with pytest.raises(Exception, match="the_node") as caught:
        open_model(attention_model(feeds, node_attributes(case.attributes)))
    assert f"GroupQueryAttention 'the_node': {message}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("past_value", np.float32),
        ("past_key", np.uint8),
        ("past_key", np.float16),
        ("key_scale", np.int8),
        ("value_scale", np.float16),
        ("value_scale", np.float64),
        ("query", np.int8),
    ],
    ids=str,
)
def test_types_that_do_not_go_together(name: str, dtype: type) -> None:
    case = AttentionCase(AttentionAttributes(4, 2, True), 16, 1, [4], 4, int8=True)
    feeds = case.feeds()
    feeds[name] = feeds[name].astype(dtype)
    with pytest.raises(Exception, match="the_node"):
        open_model(attention_model(feeds, node_attributes(case.attributes)))


def spoiled(value: float) -> np.ndarray:
    scale = np.ones((2, 16), np.float32)
    scale[1, 5] = value
    return scale


NUMBER = "it must be a positive, finite and normal number"
SCALES = [
    (np.ones((2, 15), np.float32), " has shape [2, 15]; it must be [2, 16]"),
    (np.ones((1, 16), np.float32), " has shape [1, 16]; it must be [2, 16]"),
    (np.ones((4, 16), np.float32), " has shape [4, 16]; it must be [2, 16]"),
    (np.ones((16, 2), np.float32), " has shape [16, 2]; it must be [2, 16]"),
    (np.ones(32, np.float32), " has shape [32]; it must be [2, 16]"),
    (np.ones((1, 2, 1, 16), np.float32), " has shape [1, 2, 1, 16]; it must be [2, 16]"),
    (np.array(1, np.float32), " has shape []; it must be [2, 16]"),
    (np.ones((0, 16), np.float32), " has shape [0, 16]; it must be [2, 16]"),
    (spoiled(np.nan), f"[1, 5] is nan; {NUMBER}"),
    (spoiled(np.inf), f"[1, 5] is inf; {NUMBER}"),
    (spoiled(-np.inf), f"[1, 5] is -inf; {NUMBER}"),
    (spoiled(0.0), f"[1, 5] is 0; {NUMBER}"),
    (spoiled(-0.02), f"[1, 5] is -0.02; {NUMBER}"),
    (spoiled(1e-39), f"[1, 5] is 1e-39; {NUMBER}"),
]


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("name", ["key_scale", "value_scale"])
@pytest.mark.parametrize(("scale", "message"), SCALES, ids=[message[:24] for _, message in SCALES])
def test_scales_are_checked(name: str, scale: np.ndarray, message: str, constant: bool) -> None:
    case = AttentionCase(AttentionAttributes(4, 2, True), 16, 1, [4], 4, int8=True)
    feeds = case.feeds() | {name: scale}
    model = onnx.load_from_string(attention_model(feeds, node_attributes(case.attributes)))
    if constant:
        model.graph.initializer.append(numpy_helper.from_array(feeds.pop(name), name))
        model.graph.input.remove(next(value for value in model.graph.input if value.name == name))
    with pytest.raises(Exception, match="the_node") as caught:
        open_model(model.SerializeToString()).run(None, feeds)
    assert f"GroupQueryAttention 'the_node': {name}{message}" in str(caught.value)
    assert "\n" not in str(caught.value).strip()


def test_scales_at_an_odd_address(tmp_path: Path) -> None:
    """External data may start at any byte of its file: floats that nobody aligned are refused, not misread."""
    case = AttentionCase(AttentionAttributes(4, 2, True), 16, 1, [4], 4, int8=True)
    feeds = case.feeds()
    model = onnx.load_from_string(attention_model(feeds, node_attributes(case.attributes)))
    tensor = numpy_helper.from_array(feeds.pop("key_scale"), "key_scale")
    (tmp_path / "data").write_bytes(b"??" + tensor.raw_data)
    onnx.external_data_helper.set_external_data(tensor, "data", offset=2, length=len(tensor.raw_data))
    tensor.ClearField("raw_data")
    model.graph.initializer.append(tensor)
    model.graph.input.remove(next(value for value in model.graph.input if value.name == "key_scale"))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library_path()))
    session = ort.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match="key_scale lies at an address that is not a multiple of 4"):
        session.run(None, feeds)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("past_value", np.zeros((2, 2, 9, 16), np.int8), "past_value has shape [2, 2, 9, 16]; it must be that of"),
        ("past_key", np.zeros((2, 4, 10, 16), np.int8), "past_key has shape [2, 4, 10, 16]; it must be [batch, 2,"),
        ("past_key", np.zeros((2, 2, 10, 12), np.int8), "past_value has shape [2, 2, 10, 16]; it must be that of"),
        ("query", np.zeros((2, 3, 127), np.float32), "query has shape [2, 3, 127]; it must be [2, sequence, 128]"),
        ("seqlens_k", np.array([10, 11], np.int32), "seqlens_k[1] is 11; it must be from 0 to 10"),
        ("query_seqlens", np.array([0, 1], np.int32), "the cache has only 10 rows for the 11 before them"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_operands_are_checked(name: str, wrong: np.ndarray, message: str) -> None:
    case = AttentionCase(AttentionAttributes(4, 2, True), 16, 3, [11, 8], 10, counts=[3, 2], int8=True)
    with pytest.raises(Exception, match="the_node") as caught:
        case.session().run(None, case.feeds() | {name: wrong})
    assert message in str(caught.value)


@pytest.mark.parametrize(("batch", "sequence"), [(0, 3), (2, 0)])
def test_nothing_to_do(batch: int, sequence: int) -> None:
    case = AttentionCase(AttentionAttributes(4, 2, True), 16, 3, [5, 4], 4, int8=True)
    feeds = case.feeds()
    if batch == 0:
        feeds |= {name: feeds[name][:0] for name in ("query", "past_key", "past_value", "seqlens_k")}
    if sequence == 0:
        feeds["query"] = feeds["query"][:, :0]
        feeds["seqlens_k"] = np.array([3, 2], np.int32)
        feeds["total_sequence_length"] = np.array(4, np.int32)
    output, key, _ = case.session().run(None, feeds)
    assert output.shape == (batch, sequence, 64)
    if batch:
        np.testing.assert_array_equal(key[0], feeds["past_key"][0])
