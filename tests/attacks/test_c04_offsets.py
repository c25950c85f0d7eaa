"""Classes 4, 5 and 6: offsets, shapes and dtypes of a safetensors header."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_checkpoints import entry, safetensors_bytes, write_directory

from bitnet_onnx.converters.checkpoints import open_checkpoint
from bitnet_onnx.errors import CheckpointError, UnsupportedError


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": entry(end=24), "b": entry(begin=12, end=36)}, "'b' overlaps"),
        ({"a": entry(), "b": entry()}, "overlaps"),
        ({"a": entry(begin=8, end=32)}, "'a' leaves a hole"),
        ({"a": entry(), "b": entry(begin=32, end=56)}, "'b' leaves a hole"),
        ({"a": entry()}, "tensors end at byte"),
        ({}, "tensors end at byte"),
        ({"a": entry(begin=24, end=0)}, "begin <= end"),
        ({"a": entry(begin=-24, end=0)}, "data_offsets must be"),
        ({"a": entry(begin=0, end=2**63)}, "ends at byte 9223372036854775808"),
        ({"a": entry(begin=0.0, end=24)}, "data_offsets must be"),
        ({"a": entry(begin=False, end=24)}, "data_offsets must be"),
        ({"a": entry() | {"data_offsets": [0, 12, 24]}}, "data_offsets must be"),
        ({"a": entry() | {"data_offsets": "0:24"}}, "data_offsets must be"),
        ({"a": entry(shape=[2, 4])}, "takes 32 bytes, data_offsets span 24"),
        ({"a": entry("F16")}, "takes 12 bytes"),
        ({"a": entry(shape=[2**33, 2**33])}, "takes .* bytes"),
        ({"a": entry(shape=[2**63, 2, 3])}, "takes .* bytes"),
        ({"a": entry(shape=[-2, -3])}, "integers >= 0"),
        ({"a": entry(shape=[True, 6])}, "integers >= 0"),
        ({"a": entry(shape=[2.0, 3.0])}, "integers >= 0"),
        ({"a": entry(shape=[1] * 8 + [6])}, "at most 8"),
        ({"a": entry(shape="6")}, "shape must be"),
        ({"a": entry(shape=None)}, "shape must be"),
        ({"a": {"dtype": "F32"}}, "exactly dtype, shape and data_offsets"),
        ({"a": entry() | {"extra": 1}}, "exactly dtype, shape and data_offsets"),
        ({"a": [1, 2]}, "exactly dtype, shape and data_offsets"),
        ({"a": None}, "exactly dtype, shape and data_offsets"),
    ],
)
def test_header_that_contradicts_itself(tmp_path: Path, header: object, message: str) -> None:
    path = write_directory(tmp_path, safetensors_bytes(header, bytes(64)))
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(path)
    assert "model.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F8_E8M0", "C64", "f32", "", 4, None, ["F32"], "F32\n" * 1000])
def test_unknown_dtypes(tmp_path: Path, dtype: object) -> None:
    path = write_directory(tmp_path, safetensors_bytes({"a": entry() | {"dtype": dtype}}, bytes(24)))
    with pytest.raises(UnsupportedError, match=r"tensor 'a': dtype .* is not one of") as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_names_of_any_kind_stay_on_one_short_line(tmp_path: Path) -> None:
    for name in ("a\nb", "\x1b[31m", "\ud800", "x" * 100_000):
        path = write_directory(tmp_path, safetensors_bytes({name: entry(end=20)}, bytes(24)))
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(path)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 600


@given(
    st.dictionaries(
        st.sampled_from("abc"),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "U8", "BF16"]),
                "shape": st.lists(st.integers(0, 4), max_size=3),
                "data_offsets": st.lists(st.integers(0, 40), min_size=2, max_size=2),
            }
        ),
    ),
    st.integers(0, 40),
)
def test_whatever_is_accepted_covers_the_data_exactly(tmp_path_factory, header, size) -> None:
    path = write_directory(tmp_path_factory.mktemp("st"), safetensors_bytes(header, bytes(size)))
    try:
        with open_checkpoint(path) as checkpoint:
            assert sum(info.nbytes for info in checkpoint.tensors.values()) == size
    except CheckpointError:
        ranges = sorted(tuple(value["data_offsets"]) for value in header.values())
        sizes = {"F32": 4, "U8": 1, "BF16": 2}
        sound = [0, *(end for _, end in ranges)] == [*(begin for begin, _ in ranges), size]
        for value in header.values():
            count = sizes[value["dtype"]]
            for dimension in value["shape"]:
                count *= dimension
            sound &= count == value["data_offsets"][1] - value["data_offsets"][0]
        assert not sound
