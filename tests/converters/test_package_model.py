"""A package as a source: nothing that it stores is lost, and nothing that it says is believed unseen."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from exports import CHOSEN, FLOAT, KEPT, TERNARY, context_of, initializers, write_source
from safetensors.numpy import load_file, save_file
from tiny_models import TINY, write_checkpoint

import bitnet_onnx
from bitnet_onnx.converters import convert
from bitnet_onnx.converters._package_graph import MAX_GRAPH
from bitnet_onnx.converters.model import open_model
from bitnet_onnx.converters.package_model import open_package
from bitnet_onnx.errors import InputError, PackageError
from bitnet_onnx.policy import Policy, Precision, Weights
from bitnet_onnx.ternary import quantize_absmean

HEAD = Precision(Weights.INT8, 0, 16)
POLICIES = {
    "default": Policy(),
    "ternary": TERNARY,
    "int6": Policy(Precision(Weights.INT6, 64), Precision(Weights.INT4)),
    "int8": Policy(Precision(Weights.INT8, 0), Precision(Weights.FLOAT32)),
    "float": FLOAT,
    # Each matrix of a joint node gets a node of its own.
    "mixed": Policy(
        Precision(Weights.TERNARY), HEAD, (("*.q_proj", Precision(Weights.INT8)), ("*.up_proj", FLOAT.default))
    ),
}


@pytest.mark.parametrize(
    ("name", "policy"),
    [(name, "mixed") for name in CHOSEN] + [("biased_mqa", name) for name in POLICIES if name != "mixed"],
)
def test_a_package_of_a_package_holds_the_same_bytes(name: str, policy: str, tmp_path: Path) -> None:
    convert(
        write_source(tmp_path / "source", name),
        tmp_path / "one",
        policy=POLICIES[policy],
        context_length=context_of(name),
    )
    convert(tmp_path / "one", tmp_path / "two", policy=KEPT)
    assert initializers(tmp_path / "two") == initializers(tmp_path / "one")
    first, second = (json.loads((tmp_path / part / "bitnet_onnx.json").read_text()) for part in ("one", "two"))
    assert second["architecture"] == first["architecture"]
    assert second["source"]["name"] == first["source"]["name"]
    assert second["source"]["format"] == "package"
    for file in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()


def test_by_default_the_head_of_a_package_is_kept(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "source", TINY["untied_gqa"])
    bitnet_onnx.convert(tmp_path / "source", tmp_path / "one", weights="int6", head="int4")
    bitnet_onnx.convert(tmp_path / "one", tmp_path / "two")
    assert initializers(tmp_path / "two") == initializers(tmp_path / "one")
    bitnet_onnx.convert(tmp_path / "one", tmp_path / "three", head="int8")
    layers = json.loads((tmp_path / "three" / "bitnet_onnx.json").read_text())["layers"]
    assert {layer["weights"] for layer in layers if layer["role"] in {"embed_tokens", "lm_head"}} == {"int8"}


@pytest.mark.parametrize("name", CHOSEN)
def test_codes_and_scales_by_role(name: str, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", name)
    convert(source, tmp_path / "package", policy=TERNARY, context_length=context_of(name))
    with open_model(source, context_length=context_of(name)) as before, open_model(tmp_path / "package") as after:
        assert after.spec == before.spec
        assert after.trained_ternary == before.trained_ternary
        for role, _ in before.spec.tensors():
            module = role.rpartition(".")[0]
            assert after.tensors.shape(role) == before.tensors.shape(role)
            if len(before.tensors.shape(role)) == 1 or not module.startswith("layers."):
                continue
            expected = quantize_absmean(before.tensors.read(role))
            found = after.tensors.quantized(module)
            assert found is not None
            assert not after.tensors.is_master(module)
            np.testing.assert_array_equal(found.raw, expected.raw, role)
            np.testing.assert_array_equal(found.scale, expected.scale, role)
            np.testing.assert_array_equal(after.tensors.read(role), expected.dequantize(), role)
        for role, shape in before.spec.tensors():
            if len(shape) == 1 or role == "embed_positions.weight":
                np.testing.assert_array_equal(after.tensors.read(role), before.tensors.read(role), role)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ["untied_gqa", "biased_mqa"])
def test_any_rows_of_a_matrix(name: str, policy: str, tmp_path: Path) -> None:
    convert(write_source(tmp_path / "source", name), tmp_path / "package", policy=POLICIES[policy])
    with open_model(tmp_path / "package") as model:
        for role, (rows, _) in model.spec.matrices():
            whole = model.tensors.read(f"{role}.weight")
            for start, stop in ((0, rows), (0, 1), (rows - 1, rows), (7, min(41, rows)), (31, 33)):
                part = model.tensors.read_rows(f"{role}.weight", start, min(stop, rows))
                np.testing.assert_array_equal(part, whole[start:stop], role)


@pytest.mark.parametrize("name", ["untied_gqa", "biased_mqa", "bitnet"])
def test_floats_of_a_package_are_its_codes_times_scales_and_lead_back_to_them(name: str, tmp_path: Path) -> None:
    convert(write_source(tmp_path / "source", name), tmp_path / "codes", policy=TERNARY)
    convert(tmp_path / "codes", tmp_path / "floats", policy=FLOAT)
    with open_model(tmp_path / "codes") as one, open_model(tmp_path / "floats") as two:
        for role, _ in one.spec.matrices():
            codes = one.tensors.quantized(role)
            assert codes is not None
            steps = codes.raw.astype(np.float32) - np.float32(codes.grid.zero_point)
            np.testing.assert_array_equal(two.tensors.read(f"{role}.weight"), codes.step() * steps, role)
            assert two.tensors.quantized(role) is None
    convert(tmp_path / "floats", tmp_path / "again", policy=TERNARY)
    ours, theirs = initializers(tmp_path / "again"), initializers(tmp_path / "codes")
    blocks = {key for key in theirs if "layers." in key}
    assert blocks
    assert {key: ours[key] for key in blocks} == {key: theirs[key] for key in blocks}


def test_a_norm_inside_every_linear_layer(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", TINY["bitnet"])
    weights = load_file(source / "model.safetensors")
    rng = np.random.default_rng(5)
    for name, value in list(weights.items()):
        if name.endswith("_proj.weight"):
            norm = (1 + 0.2 * rng.standard_normal(value.shape[1])).astype(np.float32)
            weights[name.replace(".weight", ".rms_norm.weight")] = norm
    save_file(weights, source / "model.safetensors")
    scheme = {
        "quant_method": "bitnet",
        "linear_class": "autobitlinear",
        "quantization_mode": "online",
        "use_rms_norm": True,
        "rms_norm_eps": 1e-4,
    }
    (source / "config.json").write_text(json.dumps({**TINY["bitnet"].config, "quantization_config": scheme}))
    for number, policy in enumerate((TERNARY, FLOAT)):
        one, two = tmp_path / f"one{number}", tmp_path / f"two{number}"
        convert(source, one, policy=policy)
        convert(one, two, policy=KEPT)
        assert initializers(two) == initializers(one)
        with open_model(one) as model:
            assert model.spec.linear_norm_epsilon == 1e-4
            for name, value in weights.items():
                if name.endswith("rms_norm.weight"):
                    role = name.removeprefix("model.").replace("self_attn", "attn").replace("rms_norm", "norm")
                    np.testing.assert_array_equal(model.tensors.read(role), value)


def test_another_context(tmp_path: Path) -> None:
    convert(write_source(tmp_path / "source", "tied_mha"), tmp_path / "one", context_length=100)
    with open_package(tmp_path / "one") as model:
        assert model.spec.context_length == 100
    with open_model(tmp_path / "one", context_length=300) as model:
        assert model.spec.context_length == 300


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hostile")
    convert(write_source(directory / "source", "untied_gqa"), directory / "package")
    return directory / "package"


@pytest.fixture
def copy(package: Path, tmp_path: Path) -> Path:
    return shutil.copytree(package, tmp_path / "package")


def edit(path: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(path / "model.onnx", load_external_data=False)
    change(model)
    (path / "model.onnx").write_bytes(model.SerializeToString())


def tensor(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(item for item in model.graph.initializer if item.name == name)


def placed(**entries: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        for entry in tensor(model, "lm_head.weight").external_data:
            entry.value = entries.get(entry.key, entry.value)

    return change


def shaped(name: str, *dims: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        del tensor(model, name).dims[:]
        tensor(model, name).dims.extend(dims)

    return change


def renamed(name: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        tensor(model, name).name = "other"

    return change


def attribute(operator: str, name: str, value: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        node = next(item for item in model.graph.node if item.op_type == operator)
        next(item for item in node.attribute if item.name == name).i = value

    return change


def later(model: onnx.ModelProto) -> None:
    node = next(item for item in model.graph.node if item.op_type == "BitLinear")
    node.attribute.append(onnx.helper.make_attribute("operator_version", 2))


def twice(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(tensor(model, "model.layers.0.attn.o_proj.scale"))


def without_attribute(model: onnx.ModelProto) -> None:
    node = next(item for item in model.graph.node if item.op_type == "BitLinear")
    del node.attribute[:]


def contradicting(model: onnx.ModelProto) -> None:
    node = onnx.NodeProto()
    node.CopyFrom(next(item for item in model.graph.node if item.op_type == "BitLinear"))
    next(item for item in node.attribute if item.name == "zero_point").i = 3
    model.graph.node.append(node)


def large_inline(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(onnx.TensorProto(name="x", data_type=2, dims=[70_000], raw_data=bytes(70_000)))


def of_type(model: onnx.ModelProto) -> None:
    tensor(model, "lm_head.scale").data_type = onnx.TensorProto.UINT8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (placed(location="../secret"), r"its data is said to lie in '\.\./secret': only model\.onnx\.data is read"),
        (placed(location="/etc/passwd"), "only model.onnx.data is read"),
        (placed(offset="99999999999"), "ends at byte .* of model.onnx.data, which has"),
        (placed(offset="-16384"), "external data offset is '-16384': expected a number of bytes"),
        (placed(length="9" * 30), "external data length is '9+': expected a number"),
        (placed(length="16"), r"tensor 'lm_head.weight': 16 bytes, shape"),
        (shaped("lm_head.weight", 1 << 40, 1 << 40, 1), "is impossible"),
        (shaped("lm_head.weight", -1, 4, 4), "is impossible"),
        (shaped("lm_head.weight", 1, 1, 1, 1, 1), "is impossible"),
        (shaped("model.layers.0.attn.qkv_proj.norm_weight", 32, 2), "the configuration demands float32"),
        (renamed("model.layers.1.mlp.down_proj.weight"), "'model.layers.1.mlp.down_proj.weight' is missing"),
        (renamed("model.layers.1.mlp.gate_up_proj.scale"), "'model.layers.1.mlp.gate_up_proj.scale' is missing"),
        (renamed("lm_head.norm_weight"), "'model.norm.weight' is missing"),
        (
            attribute("BitLinear", "out_features", 64),
            r"is said to be \[64, 64\]: the configuration demands \[128, 64\]",
        ),
        (attribute("BitLinear", "bits", 3), "bits is 3: it must be 2, 4, 6 or 8"),
        (attribute("BitLinear", "bits", 8), r"the configuration demands uint8\[4, 4, 512\]"),
        (attribute("BitLinear", "zero_point", 1 << 40), "zero_point is 1099511627776"),
        (attribute("BitLinear", "group_size", 31), "group size is 31"),
        (attribute("BitLinear", "group_size", 64), "the configuration demands float32"),
        (later, "operator_version is 2, this version of bitnet-onnx reads up to 1; update bitnet-onnx"),
        (twice, "'model.layers.0.attn.o_proj.scale': appears twice"),
        (without_attribute, "attribute bits is missing"),
        (contradicting, "what another node contradicts"),
        (large_inline, "a node or tensor of 70"),
        (of_type, "'lm_head.scale': .* bytes, shape"),
    ],
)
def test_a_graph_that_lies(copy: Path, change: Callable[[onnx.ModelProto], None], message: str) -> None:
    edit(copy, change)
    with pytest.raises(PackageError, match=message) as caught, open_model(copy):
        pass
    assert "\n" not in str(caught.value)
    assert "model" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 1}, r"format_version is 1, written by .*, this version of bitnet-onnx reads 2; convert"),
        ({"format_version": 3}, "format_version is 3, .*; update bitnet-onnx"),
        ({"operator": {"version": 2}}, "operator version is 2, .*; update bitnet-onnx"),
        ({"format_version": True}, "format_version is True"),
        ({"architecture": None}, "no object `architecture`"),
        ({"architecture": {"context_length": 0}}, "architecture.context_length is 0, expected an integer"),
        (
            {"architecture": {"context_length": 8, "vocab_size": 7}},
            "architecture.vocab_size is 7, but 515 by config.json",
        ),
    ],
)
def test_a_manifest_that_lies(copy: Path, change: dict[str, object], message: str) -> None:
    path = copy / "bitnet_onnx.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(PackageError, match=message), open_model(copy):
        pass


def test_a_name_for_terminals_only(copy: Path) -> None:
    path = copy / "bitnet_onnx.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "source": {"name": "\x1b[31mred"}}))
    with open_model(copy) as model:
        assert model.name == "package"


def test_values_that_are_not_finite(copy: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        item = tensor(model, "lm_head.scale")
        values = np.frombuffer(item.raw_data, np.float32).copy()
        values[3] = np.nan
        item.raw_data = values.tobytes()

    edit(copy, change)
    with (
        open_model(copy) as model,
        pytest.raises(PackageError, match=r"'lm_head\.scale' holds a value that is not finite"),
    ):
        model.tensors.quantized("lm_head")


@pytest.mark.parametrize(
    "name", ["model.onnx", "model.onnx.data", "config.json", "generation_config.json", "tokenizer.json"]
)
def test_a_missing_file(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(InputError, match=name), open_model(copy):
        pass


@pytest.mark.parametrize("name", ["model.onnx.data", "config.json"])
def test_a_link_out_of_the_package(copy: Path, name: str, tmp_path: Path) -> None:
    (copy / name).rename(tmp_path / "elsewhere")
    (copy / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"links to .*, outside the checkpoint"), open_model(copy):
        pass


def test_a_truncated_graph(copy: Path) -> None:
    data = (copy / "model.onnx").read_bytes()
    for length in [*range(0, len(data), len(data) // 40), len(data) - 1]:
        (copy / "model.onnx").write_bytes(data[:length])
        with pytest.raises(PackageError), open_model(copy):
            pass


@pytest.mark.parametrize(
    "data", [b"\x0b", b"\x08" + b"\xff" * 11, b"\x3a\xff\xff\xff\xff\x0f", b"\x3a\x03\x2a\x01\x0f", b"plain text"]
)
def test_bytes_that_are_no_graph(copy: Path, data: bytes) -> None:
    (copy / "model.onnx").write_bytes(data)
    with pytest.raises(PackageError), open_model(copy):
        pass


@pytest.mark.parametrize("part", [b"\x0a\x00", b"\x2a\x00", b"\x08\x00"])
def test_a_graph_of_countless_parts_is_refused_in_time(copy: Path, part: bytes) -> None:
    body = part * 3_000_000
    size = len(body)
    length = bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14 & 0x7F | 0x80, size >> 21])
    (copy / "model.onnx").write_bytes(b"\x3a" + length + body)
    start = time.process_time()
    with pytest.raises(PackageError), open_model(copy):
        pass
    assert time.process_time() - start < 10


def test_a_graph_that_is_too_large(copy: Path) -> None:
    os.truncate(copy / "model.onnx", MAX_GRAPH + 1)
    with pytest.raises(PackageError, match=f"{MAX_GRAPH + 1} bytes, expected 1 to {MAX_GRAPH}"), open_model(copy):
        pass
