"""Class 16: tensors above 4 GiB and graphs above 2 GiB, with files that have holes instead of gigabytes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from tiny_checkpoints import CONFIG, description, entry, gguf_bytes, safetensors_bytes
from tiny_models import TINY, TinyModel, write_checkpoint

from bitnet_onnx.converters import convert
from bitnet_onnx.converters.checkpoints._files import BinaryFile
from bitnet_onnx.converters.checkpoints._gguf_reader import read_gguf
from bitnet_onnx.converters.checkpoints.huggingface import HuggingFaceCheckpoint
from bitnet_onnx.converters.families import Config, find
from bitnet_onnx.converters.onnx import _space
from bitnet_onnx.converters.onnx._data_file import ALIGNMENT, DataFile
from bitnet_onnx.errors import InputError, PackageError
from bitnet_onnx.packing import packed_shape
from bitnet_onnx.policy import Policy, Precision, Weights
from bitnet_onnx.runtime import PackageInfo

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="files get no holes on Windows by themselves")

ROWS, COLUMNS = 300_000, 4096
SIZE = 4 * ROWS * COLUMNS  # 4.9 GB
TAIL = np.arange(COLUMNS, dtype=np.float32)


def write_with_hole(path: Path, head: bytes, size: int, tail: bytes) -> None:
    """A file that begins with `head` and ends with `tail` after `size` bytes of data, with a hole between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(head)
        file.seek(len(head) + size - len(tail))
        file.write(tail)
    assert path.stat().st_blocks * 512 < 10**7


def test_a_safetensors_file_with_a_tensor_above_4_gib(tmp_path: Path) -> None:
    header = {
        "large": entry(shape=(ROWS, COLUMNS), begin=0, end=SIZE),
        "behind": entry(shape=(COLUMNS,), begin=SIZE, end=SIZE + TAIL.nbytes),
    }
    head = safetensors_bytes(header)
    write_with_hole(tmp_path / "model.safetensors", head, SIZE + TAIL.nbytes, np.tile(TAIL, 2).tobytes())
    (tmp_path / "config.json").write_text(str(CONFIG).replace("'", '"'))
    with HuggingFaceCheckpoint(tmp_path) as checkpoint:
        assert checkpoint.tensors["large"].nbytes == SIZE
        np.testing.assert_array_equal(checkpoint.read("behind"), TAIL)
        last = checkpoint.read_rows("large", ROWS - 2, ROWS)
    np.testing.assert_array_equal(last, [np.zeros(COLUMNS), TAIL])


def test_a_gguf_file_with_a_tensor_above_4_gib(tmp_path: Path) -> None:
    head = gguf_bytes(
        descriptions=[
            description("large", (COLUMNS, ROWS), 0, 0),
            description("behind", (COLUMNS,), 0, SIZE),
        ]
    )
    write_with_hole(tmp_path / "model.gguf", head, SIZE + TAIL.nbytes, np.tile(TAIL, 2).tobytes())
    with BinaryFile(tmp_path / "model.gguf") as file:
        tensors = read_gguf(file).tensors
        np.testing.assert_array_equal(tensors["behind"].decode(0, COLUMNS), TAIL)
        large = tensors["large"]
        np.testing.assert_array_equal(large.decode(large.size - COLUMNS, large.size), TAIL)


def test_external_data_behind_5_gb(tmp_path: Path) -> None:
    """ONNX Runtime reads a tensor whose offset needs more than 32 bits."""
    with DataFile(tmp_path / "model.onnx.data") as data:
        data._file.seek(5 * 10**9)
        tensor = data.store("w", np.tile(TAIL, 2))
    assert isinstance(tensor, ir.ExternalTensor)
    assert tensor.offset is not None
    assert tensor.offset >= 5 * 10**9
    assert tensor.offset % ALIGNMENT == 0
    value = ir.Value(name="w", const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape([2 * COLUMNS]))
    output = ir.node("Identity", [value], name="identity")
    graph = ir.Graph([], [output.outputs[0]], nodes=[output], initializers=[value], opset_imports={"": 20})
    output.outputs[0].name, output.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    output.outputs[0].shape = ir.Shape([2 * COLUMNS])
    ir.save(ir.Model(graph, ir_version=10), tmp_path / "model.onnx")
    session = ort.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {})[0], np.tile(TAIL, 2))


def test_weights_never_grow_the_graph(tmp_path: Path, tiny_checkpoint: Any) -> None:
    """A graph file cannot reach the 2 GiB of protobuf: what is not small lies in the data file."""
    convert(tiny_checkpoint("untied_gqa"), tmp_path / "package", policy=Policy(Precision(Weights.FLOAT32)))
    model = onnx.load(tmp_path / "package" / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        assert tensor.external_data or tensor.ByteSize() < ALIGNMENT + 200, tensor.name


def test_a_graph_file_above_2_gib_is_refused(tmp_path: Path, tiny_checkpoint: Any) -> None:
    convert(tiny_checkpoint("untied_gqa"), tmp_path / "package")
    os.truncate(tmp_path / "package" / "model.onnx", 2**31)
    with pytest.raises(PackageError, match=r"model\.onnx: 2147483648 bytes, expected 1 to 2147483647"):
        PackageInfo.open(tmp_path / "package")


def test_sizes_are_counted_beyond_32_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, columns = 1_000_000, 65_536
    assert np.prod([int(size) for size in packed_shape(rows, columns, 8)], dtype=np.int64) == rows * columns
    spec = SimpleNamespace(matrices=lambda: iter([("lm_head", (rows, columns))]))
    policy = Policy(head=Precision(Weights.INT8, 0, 16))
    monkeypatch.setattr(_space, "free_bytes", lambda _: rows * columns - 1)
    with pytest.raises(PackageError, match=f"takes more than the {rows * columns - 1} bytes"):
        _space.check_space(tmp_path / "x", spec, None, policy)  # type: ignore[arg-type]
    monkeypatch.setattr(_space, "free_bytes", lambda _: rows * columns)
    _space.check_space(tmp_path / "x", spec, None, policy)  # type: ignore[arg-type]


def test_a_row_too_long_for_exact_sums(tmp_path: Path) -> None:
    """65793 columns of 8 bits could overflow 32 bits: refused, with the numbers."""
    changes = {"intermediate_size": 65800, "num_hidden_layers": 1, "hidden_size": 8, "head_dim": 16}
    model = TinyModel(1, {**TINY["untied_gqa"].config, **changes})
    source = write_checkpoint(tmp_path / "source", model)
    with pytest.raises(InputError, match="in_features 65800 with 8-bit weights can overflow a 32-bit sum"):
        convert(source, tmp_path / "package", policy=Policy(Precision(Weights.INT8, 0)))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_sizes_beyond_4_gib_are_arithmetic_only() -> None:
    """A specification of any size is described without allocating: 200 G parameters, tensors above 4 GiB."""
    config = Config(
        dict(TINY["untied_gqa"].config)
        | {
            "hidden_size": 65536,
            "num_attention_heads": 512,
            "intermediate_size": 2**20,
            "vocab_size": 2**20,
            "num_hidden_layers": 1,
        }
    )
    shapes = dict(find(config).spec(config).tensors())
    assert shapes["layers.0.mlp.up_proj.weight"] == (2**20, 65536)
