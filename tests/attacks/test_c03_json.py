"""Class 3, and class 10 as far as it is JSON: every JSON file of a checkpoint is bounded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bounded_command import refused
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save
from tiny_checkpoints import safetensors_bytes, write_directory

from bitnet_onnx.converters.checkpoints import open_checkpoint
from bitnet_onnx.errors import CheckpointError
from bitnet_onnx.json_input import MAX_DEPTH, MAX_ITEMS, load_object

WEIGHTS = save({"w": np.ones(2, np.float32)})

BAD = [
    (b"", "not JSON"),
    (b"{", "not JSON"),
    (b"[]", "object is expected, this is list"),
    (b"3", "object is expected, this is int"),
    (b'{"a":1,"a":2}', "key 'a' appears twice"),
    (b'{"x":{"a":1,"b":2,"a":1}}', "key 'a' appears twice"),
    (b'{"\xff":1}', "byte 2 is not UTF-8"),
    (b"\xff\xfe{\x00}\x00", "not UTF-8"),
    (b'{"a":NaN}', "NaN is not JSON"),
    (b'{"a":-Infinity}', "-Infinity is not JSON"),
    (b'{"a":1e999}', "beyond the range of a double"),
    (b'{"a":18446744073709551616}', "does not fit 64 bits"),
    (b'{"a":-9223372036854775809}', "does not fit 64 bits"),
    (b'{"a":1' + b"0" * 10_000 + b"}", "does not fit 64 bits"),
    (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deeper than 64"),
    (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "deeper than 64"),
    (b"[" * 1_000_000, "deeper than 64"),
    (b'{"a":"' + b'\\"' * 500_000, "not JSON"),
    (b'{"a":"\\', "not JSON"),
]


@pytest.mark.parametrize(("data", "message"), BAD, ids=[f"{data[:16]!r}" for data, _ in BAD])
def test_config_header_and_index(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(write_directory(tmp_path / "config", WEIGHTS, data))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(write_directory(tmp_path / "header", safetensors_bytes(data)))
    index = write_directory(tmp_path / "index", WEIGHTS)
    (index / "model.safetensors").rename(index / "model-1.safetensors")
    (index / "model.safetensors.index.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(index)
    generation = write_directory(tmp_path / "generation", WEIGHTS)
    (generation / "generation_config.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(generation)


def test_size_is_checked_before_reading(tmp_path: Path) -> None:
    path = write_directory(tmp_path, WEIGHTS)
    with (path / "config.json").open("r+b") as file:
        file.truncate(1 << 40)  # sparse: a terabyte that takes no room
    with pytest.raises(CheckpointError, match="1099511627776 bytes exceed the limit of 4000000"):
        open_checkpoint(path)
    with pytest.raises(CheckpointError, match="3 bytes of JSON exceed the limit of 2"):
        load_object(b"{ }", "x.json", max_bytes=2, error=CheckpointError)


def test_depth_counts_brackets_outside_strings_only() -> None:
    assert load_object(b'{"a": "[[[[' + b"[" * 100 + b'\\"[[["}', "x", max_bytes=1000, error=CheckpointError)
    nested = b'{"a":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}"
    assert load_object(nested, "x", max_bytes=1000, error=CheckpointError)


FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.dictionaries(
        st.text(),
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | FINITE | st.text(),
            lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
            max_leaves=20,
        ),
    )
)
def test_sound_json_is_read_as_the_standard_library_reads_it(value: dict[str, object]) -> None:
    for ascii_only in (False, True):
        data = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "strict")
        assert load_object(data, "x", max_bytes=1 << 20, error=CheckpointError) == json.loads(data)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_an_object_or_an_error(data: bytes) -> None:
    try:
        assert isinstance(load_object(data, "x", max_bytes=200, error=CheckpointError), dict)
    except CheckpointError as error:
        one_line = "\n" not in str(error)
        assert one_line


def test_the_number_of_values_is_bounded() -> None:
    """A few bytes of JSON become a hundred in memory."""
    for piece in (b"[]", b"0", b'""', b"{}"):
        data = b'{"a":[' + b",".join([piece] * (MAX_ITEMS + 1)) + b"]}"
        with pytest.raises(CheckpointError, match=r"JSON of \d+ values exceeds the limit of 2500000"):
            load_object(data, "x", max_bytes=len(data), error=CheckpointError)


@pytest.mark.parametrize(
    ("text", "deep"),
    [
        (rb'"\\"', False),  # a string that holds a backslash: its quote ends it
        (rb'"\""', False),
        (rb'"\\\""', False),
        (rb'"\\",' + b"[" * 70 + b"]" * 70, True),
        (rb'"\\\"",' + b"[" * 70 + b"]" * 70, True),
    ],
)
def test_escapes_do_not_hide_depth(text: bytes, deep: bool) -> None:
    data = b'{"a":[' + text + b"]}"
    json.loads(data)
    if deep:
        with pytest.raises(CheckpointError, match="deeper than 64"):
            load_object(data, "x", max_bytes=1000, error=CheckpointError)
    else:
        assert load_object(data, "x", max_bytes=1000, error=CheckpointError) == json.loads(data)


@pytest.mark.parametrize(
    "data",
    [b'{"a":' * 100_000, b'{"a":1,"a":2}', b'{"a":NaN}', b'{"a":1' + b"0" * 10_000 + b"}", b'{"\xff":1}'],
    ids=["depth", "duplicate", "NaN", "huge integer", "not UTF-8"],
)
def test_the_command_line(tmp_path: Path, data: bytes) -> None:
    assert "config.json: " in refused(write_directory(tmp_path / "source", WEIGHTS, data), tmp_path / "out")
