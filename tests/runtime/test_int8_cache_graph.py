from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from bitnet_onnx.errors import PackageError, UnsupportedError
from bitnet_onnx.runtime._derived_graph import derived_graph
from bitnet_onnx.runtime._int8_cache_graph import Rotation, rotations, use_int8_cache
from bitnet_onnx.runtime.devices import Device
from bitnet_onnx.runtime.kv_scales import KvScales
from bitnet_onnx.runtime.package import PackageInfo
from bitnet_onnx.runtime.session import DecoderSession


def int8_cache_graph(path: Path, scales: KvScales, *, operators: bool) -> bytes:
    """The graph in `path` as a session would open it."""
    change = partial(use_int8_cache, path=path, scales=scales, operators=operators)
    return derived_graph(path, [change], ort.SessionOptions())


LAYERS, HEADS, FEATURES = 2, 2, 16
INPUTS = ("q", "k", "v", "past_key_values.{}.key", "past_key_values.{}.value", "lengths", "total", "cos", "sin")
NAMES = ["bitnet_onnx.kv_scales.{}.key", "bitnet_onnx.kv_scales.{}.value"]


def some_scales(layers: int = LAYERS, heads: int = HEADS, features: int = FEATURES) -> KvScales:
    rng = np.random.default_rng(3)
    return KvScales(*(rng.random((layers, heads, features)).astype(np.float32) + np.float32(0.01) for _ in range(2)))


def write_graph(path: Path, domain: str, more: tuple[str, ...] = (), **attributes: object) -> Path:
    """Two attention nodes and nothing around them."""
    nodes, inputs, outputs = [], [], []
    for layer in range(LAYERS):
        present = [f"present.{layer}.key", f"present.{layer}.value"]
        nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                [name.format(layer) for name in (*INPUTS, *more)],
                [f"out.{layer}", *present],
                name=f"attention_{layer}",
                domain=domain,
                num_heads=4,
                kv_num_heads=HEADS,
                do_rotary=1,
                **attributes,
            )
        )
        past = [f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"]
        shape = ("batch", HEADS, "length", FEATURES)
        inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in past]
        outputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in present]
    tables = [numpy_helper.from_array(np.ones((8, 4), np.float32), name) for name in ("cos", "sin")]
    body = helper.make_function(
        "bitnet", "GroupQueryAttention", ["x"], ["y"], [helper.make_node("Identity", ["x"], ["y"])], []
    )
    other = helper.make_function("bitnet", "Other", ["x"], ["y"], [helper.make_node("Identity", ["x"], ["y"])], [])
    model = helper.make_model(
        helper.make_graph(nodes, "attention", inputs, outputs, tables),
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid(domain, 1)],
        functions=[body, other],
    )
    path.write_bytes(model.SerializeToString())
    return path


def attributes_of(node: onnx.NodeProto) -> dict[str, object]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def test_our_node_gets_two_inputs(tmp_path: Path) -> None:
    scales = some_scales()
    path = write_graph(tmp_path / "model.onnx", "bitnet", ("new",), scale=0.5)
    model = onnx.load_from_string(int8_cache_graph(path, scales, operators=True))
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for layer, node in enumerate(model.graph.node):
        names = [name.format(layer) for name in NAMES]
        assert (node.domain, node.overload) == ("bitnet", "")
        assert list(node.input) == [*(name.format(layer) for name in INPUTS), "new", *names]
        assert attributes_of(node) == attributes_of(onnx.load(path).graph.node[layer])
        np.testing.assert_array_equal(tensors[names[0]], scales.key[layer])
        np.testing.assert_array_equal(tensors[names[1]], scales.value[layer])
    assert [body.name for body in model.functions] == ["Other"]


def test_without_the_library_the_node_is_onnx_runtimes(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "model.onnx", "bitnet", ("new",), scale=0.5)
    model = onnx.load_from_string(int8_cache_graph(path, some_scales(), operators=False))
    for layer, node in enumerate(model.graph.node):
        names = [name.format(layer) for name in NAMES]
        assert (node.domain, node.overload) == ("com.microsoft", "")
        assert list(node.input) == [*(n.format(layer) for n in INPUTS), "", "", "", *names, "", "", "new"]
        assert attributes_of(node) == {
            "num_heads": 4,
            "kv_num_heads": HEADS,
            "do_rotary": 1,
            "scale": 0.5,
            "kv_cache_bit_width": 8,
            "k_quant_type": b"PER_CHANNEL",
            "v_quant_type": b"PER_CHANNEL",
        }
    assert {opset.domain for opset in model.opset_import} == {"", "bitnet", "com.microsoft"}


@pytest.mark.parametrize("operators", [True, False])
def test_onnx_runtimes_own_node_keeps_its_inputs(tmp_path: Path, operators: bool) -> None:
    path = write_graph(tmp_path / "model.onnx", "com.microsoft", ("positions", "", "sink"))
    model = onnx.load_from_string(int8_cache_graph(path, some_scales(), operators=operators))
    node = model.graph.node[1]
    names = [name.format(1) for name in NAMES]
    assert list(node.input[9:]) == ["positions", "", "sink", *names]
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    assert len(kinds) == 4 * LAYERS
    assert set(kinds.values()) == {TensorProto.INT8}


def spoil_input(graph: onnx.GraphProto) -> None:
    graph.node[1].input[3], graph.node[1].input[4] = graph.node[1].input[4], graph.node[1].input[3]


def spoil_output(graph: onnx.GraphProto) -> None:
    graph.node[1].output[1] = "another"


def spoil_kind(graph: onnx.GraphProto) -> None:
    graph.node[1].op_type = "Attention"


def spoil_domain(graph: onnx.GraphProto) -> None:
    graph.node[1].domain = "elsewhere"


def add_reader(graph: onnx.GraphProto) -> None:
    graph.node.append(helper.make_node("Identity", ["past_key_values.1.value"], ["copy"], name="attention_1"))


def give_scales(graph: onnx.GraphProto) -> None:
    graph.node[1].input.extend(["", "scale"])


def quantize(graph: onnx.GraphProto) -> None:
    graph.node[1].attribute.append(helper.make_attribute("k_quant_type", "PER_TENSOR"))


def repeat(graph: onnx.GraphProto) -> None:
    graph.node.append(graph.node[1])


SPOILED = [spoil_input, spoil_output, spoil_kind, spoil_domain, add_reader, give_scales, quantize, repeat]


@pytest.mark.parametrize("spoil", SPOILED)
def test_other_attention_is_refused_by_name(tmp_path: Path, spoil: Callable[[onnx.GraphProto], None]) -> None:
    path = write_graph(tmp_path / "model.onnx", "bitnet")
    model = onnx.load(path)
    spoil(model.graph)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedError, match=r"node attention_1 reads past_key_values\.1\.") as caught:
        int8_cache_graph(path, some_scales(), operators=True)
    assert "\n" not in str(caught.value)


def test_a_layer_without_attention_is_refused(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "model.onnx", "bitnet")
    with pytest.raises(UnsupportedError, match=r"no node reads past_key_values\.2\.key"):
        int8_cache_graph(path, some_scales(3), operators=True)


def test_names_of_nodes_are_not_obeyed(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "model.onnx", "bitnet")
    model = onnx.load(path)
    spoil_kind(model.graph)
    model.graph.node[1].name = "a\n\x1b[31m" + "b" * 500
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedError) as caught:
        int8_cache_graph(path, some_scales(), operators=True)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("data", [b"", b"\xff" * 100])
def test_what_is_no_graph_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises((PackageError, UnsupportedError), match=re.escape(str(path))) as caught:
        int8_cache_graph(path, some_scales(), operators=True)
    assert "\n" not in str(caught.value)


def test_a_huge_graph_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(PackageError, match="67108865 bytes, above the limit"):
        int8_cache_graph(path, some_scales(), operators=True)


def test_rotations_are_those_of_nodes_and_tables(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "model.onnx", "bitnet", rotary_interleaved=1)
    assert rotations(path, LAYERS) == [Rotation(8, True)] * 2
    model = onnx.load(path)
    next(a for a in model.graph.node[0].attribute if a.name == "do_rotary").i = 0
    model.graph.node[1].input[7] = "computed"
    path.write_bytes(model.SerializeToString())
    assert rotations(path, LAYERS) == [Rotation(0, True), Rotation(0, True)]


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel what is mapped")
def test_weights_are_still_mapped_from_their_file(fresh_package: Path) -> None:
    path = fresh_package / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    data = fresh_package / "model.onnx.data"
    # Large enough to be seen; what is read of it depends on the prompt, so that nothing is computed at load.
    size = 1 << 26
    offset = (data.stat().st_size + 16383) // 16384 * 16384
    with data.open("r+b") as file:
        file.truncate(offset + size)
    tensor = TensorProto(name="large", data_type=TensorProto.FLOAT, dims=[size // 4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", data.name), ("offset", str(offset)), ("length", str(size))):
        tensor.external_data.add(key=key, value=value)
    model.graph.initializer.append(tensor)
    logits = model.graph.output[0]
    model.graph.node[-1].output[0] = "without"
    model.graph.node.append(helper.make_node("Gather", ["large", "input_ids"], ["taken"]))
    model.graph.node.append(helper.make_node("ReduceSum", ["taken"], ["sum"], keepdims=0))
    model.graph.node.append(helper.make_node("Add", ["without", "sum"], [logits.name]))
    path.write_bytes(model.SerializeToString())
    before = anonymous_bytes()
    session = DecoderSession(PackageInfo.open(fresh_package), Device(), threads=1, kv_scales=some_scales())
    assert anonymous_bytes() - before < size // 4
    assert np.isfinite(session.step([1, 2, 3], session.new_cache())).all()


def anonymous_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("Anonymous:")).split()[1])
