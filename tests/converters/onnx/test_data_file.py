"""The external data file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from bitnet_onnx.converters.onnx._data_file import ALIGNMENT, INLINE_LIMIT, DataFile


def test_tensors_lie_at_aligned_offsets(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(size).astype(np.float32) for size in (5000, 4096, 9000)]
    with DataFile(tmp_path / "data") as data:
        stored = [data.store(str(index), array) for index, array in enumerate(arrays)]
    raw = (tmp_path / "data").read_bytes()
    for tensor, array in zip(stored, arrays, strict=True):
        assert isinstance(tensor, ir.ExternalTensor)
        assert tensor.offset is not None
        assert tensor.offset % ALIGNMENT == 0
        assert tensor.location == "data"
        assert raw[tensor.offset :][: array.nbytes] == array.tobytes()
        np.testing.assert_array_equal(tensor.numpy(), array)


def test_small_tensors_stay_in_the_graph(tmp_path: Path) -> None:
    with DataFile(tmp_path / "data") as data:
        small = data.store("small", np.zeros(INLINE_LIMIT - 1, np.uint8))
        scalar = data.store("scalar", np.array(2.0, np.float32))
    assert not isinstance(small, ir.ExternalTensor)
    assert scalar.numpy() == 2
    assert (tmp_path / "data").stat().st_size == 0


def test_what_is_not_contiguous_is_written_as_it_looks(tmp_path: Path) -> None:
    array = np.arange(20000, dtype=np.float32).reshape(100, 200).T
    with DataFile(tmp_path / "data") as data:
        tensor = data.store("t", array)
    np.testing.assert_array_equal(tensor.numpy(), array)


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("mine")
    with pytest.raises(FileExistsError):
        DataFile(tmp_path / "data")
