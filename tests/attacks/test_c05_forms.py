"""Packages of stock and standard operators that lie about shapes, codes and scales."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from random_decoders import BASE, write

from bitnet_onnx.converters._package_blocks import matrix_reader
from bitnet_onnx.converters._package_graph import read_graph
from bitnet_onnx.converters._package_matrices import NamedArrays
from bitnet_onnx.converters._package_tensors import PackageTensors
from bitnet_onnx.converters.checkpoints._files import BinaryFile
from bitnet_onnx.errors import PackageError
from bitnet_onnx.json_input import load_object
from bitnet_onnx.package_format import Operators
from bitnet_onnx.policy import Policy, Precision, Weights

SIX_BITS = Policy(Precision(Weights.INT6, 0), Precision(Weights.INT4, 32))
O_PROJ = "model.layers.0.attn.o_proj.weight"
Change = Callable[[onnx.TensorProto], None]


def change_tensor(package: Path, name: str, change: Change) -> None:
    model = onnx.load(package / "model.onnx", load_external_data=False)
    change(next(tensor for tensor in model.graph.initializer if tensor.name == name))
    (package / "model.onnx").write_bytes(model.SerializeToString())


def read(package: Path) -> None:
    """All matrices, as a conversion and a validation do."""
    where = package / "bitnet_onnx.json"
    manifest = load_object(where.read_bytes(), str(where), max_bytes=1 << 24, error=PackageError)
    with BinaryFile(package / "model.onnx") as model, BinaryFile(package / "model.onnx.data") as data:
        arrays = NamedArrays(str(package), read_graph(model, data))
        tensors = PackageTensors(arrays, BASE, matrix_reader(arrays, manifest, where, BASE))
        for role, _ in BASE.matrices():
            assert tensors.quantized(role) is not None


def raw(tensor: onnx.TensorProto, dtype: type[np.generic]) -> np.ndarray:
    assert tensor.raw_data
    return np.frombuffer(tensor.raw_data, dtype).copy()


def other_code(tensor: onnx.TensorProto) -> None:
    content = raw(tensor, np.uint8)
    content[5] = 0x50  # stands for -48 in the one form and for 80 in the other, both beyond six bits
    tensor.raw_data = content.tobytes()


def other_scale(tensor: onnx.TensorProto) -> None:
    content = raw(tensor, np.float32)
    content[1] *= 2
    tensor.raw_data = content.tobytes()


def infinite_scale(tensor: onnx.TensorProto) -> None:
    content = raw(tensor, np.float32)
    content[0] = np.inf
    tensor.raw_data = content.tobytes()


def wider(tensor: onnx.TensorProto) -> None:
    tensor.dims[-1] += 1


def turned(tensor: onnx.TensorProto) -> None:
    dims = list(tensor.dims)
    del tensor.dims[:]
    tensor.dims.extend([*dims[:-2], dims[-1], dims[-2]] if len(dims) > 2 else [2 * dims[0], dims[1] // 2])


@pytest.mark.parametrize("operators", [Operators.STOCK, Operators.STANDARD])
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (O_PROJ, other_code, "holds a code that 6 bits do not"),
        ("model.layers.0.mlp.down_proj.weight_scale", other_scale, "has several scales in a group"),
        ("model.layers.0.mlp.down_proj.weight_scale", infinite_scale, "not finite"),
        (O_PROJ, wider, "bytes, shape"),
        (O_PROJ, turned, "the configuration demands"),
    ],
)
def test_what_is_no_such_package_is_refused(
    name: str, change: Change, message: str, operators: Operators, tmp_path: Path
) -> None:
    package = write(tmp_path / "package", BASE, SIX_BITS, operators=operators)
    read(package)
    change_tensor(package, name, change)
    with pytest.raises(PackageError) as caught:
        read(package)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_that_end_within_a_byte_are_refused(tmp_path: Path) -> None:
    package = write(tmp_path / "package", BASE, Policy(Precision(Weights.TERNARY, 0)), operators=Operators.STANDARD)
    change_tensor(package, O_PROJ, wider)
    with pytest.raises(PackageError, match="end within a byte"):
        read(package)


def test_a_matrix_that_is_not_there_is_named(tmp_path: Path) -> None:
    package = write(tmp_path / "package", BASE, SIX_BITS, operators=Operators.STOCK)
    change_tensor(package, f"{O_PROJ}_scale", lambda tensor: setattr(tensor, "name", "other"))
    with pytest.raises(PackageError, match=r"o_proj\.weight_scale. is missing"):
        read(package)
