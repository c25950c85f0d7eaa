"""Files of weights that lie: records, offsets, sizes and types."""

from __future__ import annotations

from pathlib import Path

import pytest
from mil_packages import FLOAT16, UINT1, Program, header, record, refused, refused_bounded

from bitnet_onnx.evaluation.mil import verify

DATA = bytes(64)
GOOD = header() + record(48, 128) + DATA


def program(offset: int = 64, shape: tuple[int, ...] = (12,), **other: object) -> Program:
    made = Program()
    made.stored("w", offset, shape, **other)  # type: ignore[arg-type]
    return made


def test_a_sound_file_is_read(tmp_path: Path) -> None:
    assert verify(program().save(tmp_path, GOOD)).holds


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        (b"", "no such file"),
        (header()[:40], "40 bytes, the record at byte 0 ends behind them"),
        (header(version=3) + record(48, 128) + DATA, "version 3 of the format, expected 2"),
        (header() + record(48, 128)[:40], "expected a multiple of 64 within the 104 bytes"),
        (header() + record(48, 128, sentinel=0xDEADBEEE) + DATA, "it begins with 0xdeadbeee, expected 0xdeadbeef"),
        (header() + record(48, 128, kind=1) + DATA, r"it has the type float16, the program says float32\[12\]"),
        (header() + record(48, 128, kind=99) + DATA, "it has the type 99"),
        (header() + record(52, 128) + DATA, r"it has 52 bytes with 0 bits unused, float32\[12\] takes 48"),
        (header() + record(48, 128, padding=8) + DATA, "it has 48 bytes with 8 bits unused"),
        (header() + record(48, 192) + DATA, "48 bytes at byte 192, the file has 192"),
        (header() + record(48, 160) + DATA, "48 bytes at byte 160, the file has 192"),
        (header() + record(48, 2**64 - 64) + DATA, "the file has 192"),
        (header() + record(48, 64) + DATA, "overlap those of another tensor"),
        (header() + record(48, 0) + DATA, "overlap those of another tensor"),
        (header() + record(48, 128) + DATA[:40], "48 bytes at byte 128, the file has 168"),
    ],
)
def test_records_that_lie(weights: bytes, match: str, tmp_path: Path) -> None:
    refused(program().save(tmp_path, weights), match)


@pytest.mark.parametrize("offset", [0, 1, 65, 128, 192, 2**63, 2**64 - 64])
def test_offsets_of_the_program(offset: int, tmp_path: Path) -> None:
    refused(program(offset).save(tmp_path, GOOD), f"the record at byte {offset}, of ")


def test_two_tensors_in_one_place(tmp_path: Path) -> None:
    made = program()
    made.stored("v", 128, (12,))
    weights = header(2) + record(48, 192) + record(48, 192) + DATA
    refused(made.save(tmp_path, weights), "bytes 192 to 240 overlap those of another tensor")


def test_one_tensor_with_two_types(tmp_path: Path) -> None:
    made = program()
    made.stored("v", 64, (3, 4))
    refused(made.save(tmp_path, GOOD), r"the program has it as float32\[12\] and as float32\[3, 4\]")


def test_bits_that_are_more_than_the_bytes(tmp_path: Path) -> None:
    made = program(64, (1 << 39,), element=UINT1)
    refused(made.save(tmp_path, header() + record(8, 128, kind=9) + DATA), "takes 68719476736")


def test_shapes_beyond_all_memory(tmp_path: Path) -> None:
    made = program(64, (1 << 31, 1 << 31), element=FLOAT16)
    assert "the limit is 1099511627776 elements" in refused_bounded(made.save(tmp_path, GOOD), tmp_path / "run")
