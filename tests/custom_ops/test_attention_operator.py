"""`bitnet::GroupQueryAttention` against the numpy reference and ONNX Runtime's operator.

What int8 keys and values add is in `test_int8_attention.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from attention_models import MICROSOFT, OUTPUTS, AttentionCase, attention_model, node_attributes, open_model

from bitnet_onnx.attention import Attended, AttentionAttributes
from bitnet_onnx.custom_ops import library_path

TOLERANCE = 2e-5

HEADS = [(4, 4), (6, 2), (5, 1)]
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
    "softcap": {"do_rotary": True, "softcap": 2.0},
    "scale": {"do_rotary": False, "scale": 0.5},
}


def check(case: AttentionCase, got: Attended, expected: Attended) -> None:
    """Both agree wherever the operators say what is there."""
    # Of ours, because the padding of the runtime's output may hold anything.
    largest = np.abs(got.output).max()
    for row, (total, count) in enumerate(zip(case.totals, case.new, strict=True)):
        np.testing.assert_allclose(got.output[row, :count], expected.output[row, :count], atol=TOLERANCE * largest)
        for mine, its in ((got.present_key, expected.present_key), (got.present_value, expected.present_value)):
            assert mine.shape == its.shape
            np.testing.assert_allclose(mine[row, :, :total], its[row, :, :total], atol=1e-6)


@pytest.mark.parametrize("head_dim", [16, 64, 80, 96, 128])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("call", CALLS)
def test_equals_the_reference_and_the_runtime(call: str, variant: str, head_dim: int) -> None:
    sequence, totals, past = CALLS[call]
    for heads in HEADS:
        attributes = AttentionAttributes(*heads, **VARIANTS[variant])
        case = AttentionCase(attributes, head_dim, sequence, totals, past, separate=heads[0] == 6)
        got = case.run()
        check(case, got, case.expected())
        check(case, got, case.run(MICROSOFT))


@pytest.mark.parametrize("interleaved", [False, True])
def test_part_of_a_head_is_rotated(interleaved: bool) -> None:
    case = AttentionCase(AttentionAttributes(4, 2, True, interleaved), 64, 6, [9], 3, rotary_dim=32)
    check(case, case.run(), case.expected())
    check(case, case.run(), case.run(MICROSOFT))


@pytest.mark.parametrize("head_dim", [8, 24, 512])
def test_lengths_of_heads_that_the_runtime_does_not_take(head_dim: int) -> None:
    case = AttentionCase(AttentionAttributes(4, 2, True), head_dim, 5, [140], 135)
    check(case, case.run(), case.expected())


def test_many_query_heads_on_one_key_head() -> None:
    case = AttentionCase(AttentionAttributes(70, 1, True), 16, 3, [12], 9)
    check(case, case.run(), case.expected())


def test_mixed_prefill_and_decode() -> None:
    """Rows of one call add 5, 1, 3 and no tokens to caches of different lengths; the rest is padding."""
    case = AttentionCase(AttentionAttributes(6, 2, True), 32, 5, [145, 61, 3, 7], 150, counts=[5, 1, 3, 0])
    got = case.run()
    check(case, got, case.expected())
    check(case, got, case.run(MICROSOFT))
    for row, count in enumerate(case.new):
        assert not got.output[row, count:].any()


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("window", [-1, 20])
def test_token_by_token_gives_the_same_bits(window: int, int8: bool) -> None:
    """A padded chunk of several rows equals each row by itself, one token after the other."""
    attributes = AttentionAttributes(6, 2, True, local_window_size=window)
    counts, totals = [40, 9, 1], [170, 9, 131]
    case = AttentionCase(attributes, 64, 40, totals, 180, counts=counts, int8=int8)
    whole = case.run()
    scales = {name: array for name, array in case.tensors.items() if name.endswith("_scale")}
    for row, (total, count) in enumerate(zip(totals, counts, strict=True)):
        cache = [case.tensors[name][row : row + 1].copy() for name in ("past_key", "past_value")]
        for token in range(count):
            step = AttentionCase(attributes, 64, 1, [total - count + token + 1], 180, int8=int8)
            step.tensors.update(scales)
            for name in ("query", "key", "value"):
                step.tensors[name] = case.tensors[name][row : row + 1, token : token + 1]
            step.tensors["past_key"], step.tensors["past_value"] = cache
            done = step.run()
            cache = [done.present_key, done.present_value]
            np.testing.assert_array_equal(done.output[0, 0], whole.output[row, token])
        np.testing.assert_array_equal(cache[0][0, :, :total], whole.present_key[row, :, :total])


THREADED = [
    AttentionCase(AttentionAttributes(20, 5, True), 64, 1, [700], 700),
    AttentionCase(AttentionAttributes(4, 1, True, softcap=3.0), 32, 90, [1100, 500], 1200),
    AttentionCase(AttentionAttributes(8, 8, True, local_window_size=200), 80, 40, [640], 600),
    # more chunks than are kept at a time
    AttentionCase(AttentionAttributes(2, 1, False), 8, 20, [64 * 128 * 2 + 50], 64 * 128 * 2 + 30),
    AttentionCase(AttentionAttributes(20, 5, True), 64, 1, [700], 700, int8=True),
    AttentionCase(AttentionAttributes(4, 1, True, softcap=3.0), 32, 90, [1100, 500], 1200, int8=True),
]


@pytest.mark.parametrize("case", THREADED, ids=["decode", "ragged", "window", "long", "int8 decode", "int8 ragged"])
def test_threads_do_not_change_bits(case: AttentionCase) -> None:
    single = case.run()
    check(case, single, case.expected())
    for threads in (2, 3, 8):
        other = case.run(threads=threads)
        for name in OUTPUTS:
            np.testing.assert_array_equal(getattr(other, name), getattr(single, name))


@pytest.mark.parametrize("case", [THREADED[1], THREADED[5]], ids=["float", "int8"])
@pytest.mark.parametrize("isa", ["scalar", ""])
def test_forced_isa_gives_the_same_bits(tmp_path: Path, isa: str, case: AttentionCase) -> None:
    script = (
        "import sys, numpy as np, onnxruntime as ort\n"
        "options = ort.SessionOptions()\n"
        "options.register_custom_ops_library(sys.argv[1])\n"
        "session = ort.InferenceSession(sys.argv[2], options, providers=['CPUExecutionProvider'])\n"
        "np.savez(sys.argv[4], *session.run(None, dict(np.load(sys.argv[3]))))\n"
    )
    (tmp_path / "model.onnx").write_bytes(attention_model(case.feeds(), node_attributes(case.attributes)))
    np.savez(tmp_path / "feeds.npz", **case.feeds())
    files = [str(tmp_path / name) for name in ("model.onnx", "feeds.npz", "outputs.npz")]
    child = subprocess.run(
        [sys.executable, "-c", script, str(library_path()), *files],
        env=os.environ | {"BITNET_ONNX_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert child.returncode == 0, child.stderr
    with np.load(files[2]) as outputs:
        for got, name in zip(outputs.values(), OUTPUTS, strict=True):
            np.testing.assert_array_equal(got, getattr(case.run(), name))


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("sequence", [1, 30])
def test_cache_in_place(sequence: int, int8: bool) -> None:
    case = AttentionCase(AttentionAttributes(6, 2, True), 64, sequence, [200, 90], 256, int8=int8)
    copied = case.run()
    output, caches = case.run_in_place()
    np.testing.assert_array_equal(output, copied.output)
    for name, cache in caches.items():
        present, past = getattr(copied, f"present_{name}"), case.tensors[f"past_{name}"]
        for row, total in enumerate(case.totals):
            np.testing.assert_array_equal(cache[row, :, :total], present[row, :, :total])
            np.testing.assert_array_equal(cache[row, :, total:], past[row, :, total:])
            assert not present[row, :, total:].any()


def test_rows_beyond_the_tokens_are_not_read() -> None:
    case = AttentionCase(AttentionAttributes(4, 2, False), 16, 2, [60, 140], 256)
    for name in ("past_key", "past_value"):
        for row, total in enumerate(case.totals):
            case.tensors[name][row, :, total - 2 :] = np.nan
    output, _ = case.run_in_place()
    assert np.isfinite(output).all()
    np.testing.assert_array_equal(output, case.run().output)


def test_nan_stays_in_its_row() -> None:
    case = AttentionCase(AttentionAttributes(4, 2, True), 16, 3, [3, 3], 0)
    clean = case.run().output
    case.tensors["query"][0, 1, 0] = np.nan
    spoiled = case.run().output
    assert np.isnan(spoiled[0, 1, :16]).all()
    spoiled[0, 1, :16] = clean[0, 1, :16]
    np.testing.assert_array_equal(spoiled, clean)


@pytest.mark.parametrize(("batch", "sequence"), [(0, 3), (2, 0)])
def test_nothing_to_do(batch: int, sequence: int) -> None:
    case = AttentionCase(AttentionAttributes(4, 2, True), 16, 3, [5, 4], 4)
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


ATTRIBUTES = [
    ({"num_heads": 0}, "num_heads is 0; it must be from 1 to 65536"),
    ({"num_heads": 1 << 40}, "num_heads is 1099511627776; it must be from 1 to 65536"),
    ({"kv_num_heads": 3}, "kv_num_heads is 3; it must divide num_heads, 4"),
    ({"kv_num_heads": -1}, "kv_num_heads is -1; it must divide num_heads, 4"),
    ({"do_rotary": 2}, "do_rotary is 2; it must be 0 or 1"),
    ({"rotary_interleaved": -1}, "rotary_interleaved is -1; it must be 0 or 1"),
    ({"scale": -1.0}, "scale is -1.000000; it must be finite and not negative"),
    ({"scale": float("nan")}, "scale is nan; it must be finite and not negative"),
    ({"softcap": float("inf")}, "softcap is inf; it must be finite and not negative"),
    ({"softcap": 1}, "softcap is an int attribute; it must be a float"),
    ({"local_window_size": 0}, "local_window_size is 0; it must be -1 or at least 1"),
    ({"local_window_size": -2}, "local_window_size is -2; it must be -1 or at least 1"),
]


@pytest.mark.parametrize(("wrong", "message"), ATTRIBUTES, ids=lambda value: str(value)[:30])
def test_attributes_are_checked(wrong: dict[str, float], message: str) -> None:
    case = AttentionCase(AttentionAttributes(4, 2, True), 16, 1, [4], 4)
    attributes = node_attributes(case.attributes) | wrong
    with pytest.raises(Exception, match="the_node") as caught:
        open_model(attention_model(case.feeds(), attributes))
    assert f"GroupQueryAttention 'the_node': {message}" in str(caught.value)


@pytest.mark.parametrize("field", ["num_heads", "kv_num_heads"])
def test_missing_attributes(field: str) -> None:
    case = AttentionCase(AttentionAttributes(4, 2, True), 16, 1, [4], 4)
    attributes = node_attributes(case.attributes)
    del attributes[field]
    with pytest.raises(Exception, match=f"attribute {field} is missing; it must be an int"):
        open_model(attention_model(case.feeds(), attributes))


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ("cos_cache", "cos_cache is missing; do_rotary needs it"),
        ("sin_cache", "sin_cache is missing; do_rotary needs it"),
        ("key", "key and value must both be there, or neither"),
        ("value", "key and value must both be there, or neither"),
    ],
)
def test_inputs_that_belong_together(drop: str, message: str) -> None:
    case = AttentionCase(AttentionAttributes(4, 2, True), 16, 1, [4], 4, separate=True)
    feeds = case.feeds()
    del feeds[drop]
    with pytest.raises(Exception, match=message):
        open_model(attention_model(feeds, node_attributes(case.attributes)))


def floats(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def integers(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


LARGE = 2**31 - 1
OPERANDS = [
    ("query", floats(2, 3, 127), "query has shape [2, 3, 127]; it must be [2, sequence, 128]"),
    ("query", floats(1, 3, 128), "query has shape [1, 3, 128]; it must be [2, sequence, 128]"),
    ("query", floats(2, 384), "query has shape [2, 384]; it must be"),
    ("past_key", floats(2, 4, 10, 16), "past_key has shape [2, 4, 10, 16]; it must be [batch, 2, length, head_dim]"),
    ("past_key", floats(2, 2, 160), "past_key has shape [2, 2, 160]; it must be"),
    ("past_value", floats(2, 2, 9, 16), "past_value has shape [2, 2, 9, 16]; it must be that of past_key"),
    ("seqlens_k", integers(9), "seqlens_k has shape [1]; it must be [2]"),
    ("seqlens_k", integers(10, 11), "seqlens_k[1] is 11; it must be from 0 to 10"),
    ("seqlens_k", integers(-1, 5), "seqlens_k[0] is -1; it must be from 0 to 10"),
    ("seqlens_k", integers(LARGE, 5), f"seqlens_k[0] is {LARGE}; it must be from 0 to 10"),
    ("total_sequence_length", integers(1, 2), "total_sequence_length has shape [2]; it must be [] or [1]"),
    ("total_sequence_length", integers(LARGE), f"total_sequence_length is {LARGE}; it must be from 0 to 13"),
    ("total_sequence_length", integers(-1), "total_sequence_length is -1; it must be from 0 to 13"),
    ("cos_cache", floats(10, 8), "cos_cache has shape [10, 8]; it must be [at least 11 positions, at most 8]"),
    ("cos_cache", floats(20, 9), "cos_cache has shape [20, 9]; it must be [at least 11 positions, at most 8]"),
    ("sin_cache", floats(13, 4), "sin_cache has shape [13, 4]; it must be that of cos_cache, [13, 8]"),
    ("query_seqlens", integers(3, 4), "query_seqlens[1] is 4; it must be from 0 to 3"),
    ("query_seqlens", integers(-1, 1), "query_seqlens[0] is -1; it must be from 0 to 3"),
    ("query_seqlens", integers(0, 1), "the cache has only 10 rows for the 11 before them"),
    ("query_seqlens", integers(1), "query_seqlens has shape [1]; it must be [2]"),
]


@pytest.mark.parametrize(("name", "wrong", "message"), OPERANDS, ids=[f"{o[0]}-{i}" for i, o in enumerate(OPERANDS)])
def test_operands_are_checked(name: str, wrong: np.ndarray, message: str) -> None:
    case = AttentionCase(AttentionAttributes(4, 2, True), 16, 3, [11, 8], 10, counts=[3, 2])
    feeds = case.feeds()
    with pytest.raises(Exception, match="the_node") as caught:
        case.session().run(None, feeds | {name: wrong})
    assert "GroupQueryAttention 'the_node': " in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value).strip()


@pytest.mark.parametrize("head_dim", [4, 12, 520])
def test_length_of_a_head(head_dim: int) -> None:
    case = AttentionCase(AttentionAttributes(2, 1, False), head_dim, 1, [3], 2)
    with pytest.raises(Exception, match=f"is {head_dim}; it must be a multiple of 8 up to 512"):
        case.run()


def test_caches_shared_in_part() -> None:
    case = AttentionCase(AttentionAttributes(4, 2, False), 16, 1, [4], 8)
    session = case.session()
    binding = session.io_binding()
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in case.feeds().items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    for name in ("output", "present_value"):
        binding.bind_output(name)
    binding.bind_ortvalue_output("present_key", values["past_key"])
    with pytest.raises(Exception, match="past and present share memory in part"):
        session.run_with_iobinding(binding)
