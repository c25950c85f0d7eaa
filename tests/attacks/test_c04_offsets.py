"""Class 4: offsets of a safetensors header that overlap, leave holes or lead out."""

from __future__ import annotations

from pathlib import Path

import pytest
from bounded_command import refused
from hypothesis import given
from hypothesis import strategies as st
from tiny_checkpoints import entry, safetensors_bytes, write_directory

from bitnet_onnx.converters.checkpoints import open_checkpoint
from bitnet_onnx.errors import CheckpointError


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


def test_offsets_in_any_order_of_names_are_sound(tmp_path: Path) -> None:
    """The order of names says nothing; that of the data is what counts."""
    header = {"b": entry(begin=24, end=48), "a": entry(begin=0, end=24)}
    with open_checkpoint(write_directory(tmp_path, safetensors_bytes(header, bytes(48)))) as checkpoint:
        assert checkpoint.tensors.keys() == {"a", "b"}


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry(end=24), "b": entry(begin=12, end=36)},
        {"a": entry(), "b": entry(begin=40, end=64)},
        {"a": entry(begin=0, end=2**63)},
    ],
    ids=["overlap", "hole", "beyond"],
)
def test_the_command_line(tmp_path: Path, header: object) -> None:
    source = write_directory(tmp_path / "source", safetensors_bytes(header, bytes(64)))
    assert "model.safetensors: tensor '" in refused(source, tmp_path / "out")
