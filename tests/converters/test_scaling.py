"""Scaled inputs leave the model as it is, are kept beside the package, and are known wherever it is compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from exports import FLOAT, KEPT, initializers, write_source
from layer_inputs import correlated, statistics_of
from package_logits import PackageLogits
from random_decoders import BASE, SPECS, RandomDecoder, source
from safetensors.numpy import load_file, save, save_file
from tiny_models import TINY

from bitnet_onnx.converters import Fallback, GgufOptions, SafetensorsOptions, convert, export
from bitnet_onnx.converters._scaling import Place, Scaling, _ScaledTensors, places, search_scaling
from bitnet_onnx.converters.model import open_model
from bitnet_onnx.converters.onnx.package import write_package
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.errors import CheckpointError, InputError, PackageError
from bitnet_onnx.evaluation import Options, Validation, Way, validate
from bitnet_onnx.evaluation._linear import PolicyRule
from bitnet_onnx.evaluation.reference import Prompt, forward
from bitnet_onnx.package_format import MANIFEST, MODEL_DATA, SCALING
from bitnet_onnx.policy import Policy, Precision, Weights
from bitnet_onnx.quantization.preparation.scaling import _Trial
from bitnet_onnx.quantization.rtn import Rtn
from bitnet_onnx.quantization.statistics import InputStatistics
from bitnet_onnx.quantized import FloatArray
from bitnet_onnx.report import measure

IDS = tuple(int(token) for token in np.random.default_rng(6).integers(0, BASE.vocab_size, 30))
INT4, INT8 = Policy(Precision(Weights.INT4)), Policy(Precision(Weights.INT8, 0))
FEW = Options(tokens=(1, 12))


class Known:
    """Made-up statistics of every input, a few of whose features are much larger than the rest."""

    def __init__(self, spec: DecoderSpec) -> None:
        self._inputs: dict[str, InputStatistics] = {}
        shapes = dict(spec.matrices())
        for index, place in enumerate(places(spec)):
            inputs = correlated(index, 200, shapes[place.name][1])
            inputs[:, ::17] *= 30
            self._inputs |= dict.fromkeys(place.readers, statistics_of(inputs))

    def of(self, role: str) -> InputStatistics | None:
        return self._inputs.get(role)


def random_scales(spec: DecoderSpec) -> dict[str, FloatArray]:
    """Scales of every place, from a tenth to ten."""
    rng, shapes = np.random.default_rng(0), dict(spec.matrices())
    scales = {}
    for place in places(spec):
        rows = shapes[place.writer][0] if place.writer else shapes[place.name][1]
        values = np.exp(rng.uniform(-2.3, 2.3, rows)).astype(np.float32)
        scales[place.name] = values[list(place.sources)] if place.sources else values
    return scales


def logits(spec: DecoderSpec, tensors: object) -> np.ndarray:
    rule = PolicyRule(tensors, FLOAT)  # type: ignore[arg-type]
    return forward(spec, tensors, rule, [Prompt(IDS)])[0].logits  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SPECS)
def test_the_decoder_computes_the_same(name: str) -> None:
    spec = SPECS[name]
    tensors = RandomDecoder(spec)
    scaled = Scaling(spec, random_scales(spec)).tensors(tensors)
    np.testing.assert_allclose(logits(spec, scaled), logits(spec, tensors), rtol=0, atol=1e-4)


IN_GRAPHS = ("biases", "layer norms", "parallel, one layer norm", "like gemma 2", "one key head", "gated relu2")


@pytest.mark.parametrize("name", [*TINY, *IN_GRAPHS])
def test_the_package_computes_the_same(name: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    found = []
    with open_model(tiny_checkpoint(name)) if name in TINY else nullcontext(source(SPECS[name])) as model:
        scaling = Scaling(model.spec, random_scales(model.spec))
        for index, tensors in enumerate((model.tensors, scaling.tensors(model.tensors))):
            (tmp_path / str(index)).mkdir()
            one = replace(model, tensors=tensors)
            write_package(tmp_path / str(index), one, policy=FLOAT, fallback=Fallback.EXACT)
            found.append(PackageLogits(tmp_path / str(index))(np.array(IDS)))
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-4)
    assert initializers(tmp_path / "0") != initializers(tmp_path / "1")


@pytest.mark.parametrize("place", list(places(BASE)), ids=lambda place: place.name)
def test_half_of_a_scale_shows(place: Place) -> None:
    """What the comparisons above would see if one side were forgotten."""
    tensors, scales = RandomDecoder(BASE), random_scales(BASE)[place.name]
    half = _ScaledTensors(tensors, dict.fromkeys(place.readers, scales), {})
    assert np.abs(logits(BASE, half) - logits(BASE, tensors)).max() > 0.01


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("base", ["attn.q_proj", "mlp.gate_proj", "attn.o_proj", "mlp.down_proj"]),
        ("plain silu", ["attn.q_proj", "mlp.up_proj", "attn.o_proj"]),
        ("norms: output, rms", ["attn.o_proj", "mlp.down_proj"]),
        ("norms: residual, layer", ["attn.o_proj", "mlp.down_proj"]),
        ("parallel_shared_norm, input", ["attn.q_proj", "attn.o_proj", "mlp.down_proj"]),
        ("sub-norms", ["attn.q_proj", "mlp.gate_proj"]),
        ("norms in linear layers", []),
    ],
)
def test_what_can_be_scaled(name: str, expected: list[str]) -> None:
    found = [place.name for place in places(SPECS[name])]
    assert found == [f"layers.{index}.{role}" for index in range(2) for role in expected]
    assert not list(places(replace(SPECS[name], norm_affine=False, attention_sub_norm=True, mlp_sub_norm=True)))


@pytest.mark.parametrize("policy", [INT4, INT8], ids=["int4", "int8"])
@pytest.mark.parametrize("name", ["base", "biases", "parallel, one layer norm", "one key head"])
def test_the_search_never_raises_the_error_on_the_sample(name: str, policy: Policy) -> None:
    spec, steps = SPECS[name], []
    tensors, known = RandomDecoder(spec), Known(spec)
    found = search_scaling(spec, tensors, policy, known, lambda done, total: steps.append((done, total)))
    count = len(list(places(spec)))
    assert steps == [(index + 1, count) for index in range(count)]
    assert len(found.scales) > count // 2
    for place in places(spec):
        if place.name in found.scales:
            statistics, scale = known.of(place.name), found.scales[place.name]
            assert statistics is not None
            weights = [tensors.read(f"{role}.weight") for role in place.readers]
            grid = policy.default.grid
            trial = _Trial(weights, statistics.sample, statistics, grid, Rtn(search=grid.bits < 8), 8)
            assert trial.error(scale) < 0.99 * trial.error(np.ones_like(scale))


@pytest.mark.parametrize(
    ("policy", "scaled"),
    [
        (Policy(Precision(Weights.TERNARY)), set()),
        (FLOAT, set()),
        (KEPT, set()),
        (replace(INT8, overrides=(("*.k_proj", Precision(Weights.FLOAT32)),)), {"gate_proj", "o_proj", "down_proj"}),
        (replace(INT8, overrides=(("*.v_proj", Precision(Weights.TERNARY)),)), {"gate_proj", "down_proj"}),
        (replace(INT8, overrides=(("*.up_proj", Precision(Weights.TERNARY)),)), {"q_proj", "o_proj"}),
    ],
)
def test_what_is_not_rounded_to_integers_is_left_alone(policy: Policy, scaled: set[str]) -> None:
    found = search_scaling(BASE, RandomDecoder(BASE), policy, Known(BASE))
    assert {name.rsplit(".", 1)[1] for name in found.scales} == scaled


def test_what_already_is_ternary_is_left_alone(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    class OneTernary(RandomDecoder):
        def read(self, role: str) -> np.ndarray:
            values = super().read(role)
            return np.sign(values) * np.float32(0.25) if role.endswith("v_proj.weight") else values

    found = search_scaling(BASE, OneTernary(BASE), INT8, Known(BASE))
    assert {name.rsplit(".", 1)[1] for name in found.scales} == {"gate_proj", "down_proj"}
    convert(tiny_checkpoint("untied_gqa"), tmp_path / "package", policy=INT4)
    for path in (tiny_checkpoint("bitnet"), tmp_path / "package"):  # masters, and codes
        with open_model(path) as model:
            assert not search_scaling(model.spec, model.tensors, INT8, Known(model.spec)).scales


def test_statistics_of_another_model() -> None:
    other = replace(BASE, hidden_size=96)
    with pytest.raises(
        InputError, match=r"layers.0.attn.q_proj: statistics of 96 features for a matrix of 64 columns: .* another"
    ):
        search_scaling(BASE, RandomDecoder(BASE), INT8, Known(other))


def test_the_file(tmp_path: Path) -> None:
    assert not Scaling.open(tmp_path, BASE).scales
    Scaling(BASE, {}).save(tmp_path)
    assert not list(tmp_path.iterdir())
    scales = random_scales(BASE)
    Scaling(BASE, scales).save(tmp_path)
    found = Scaling.open(tmp_path, BASE).scales
    assert found.keys() == scales.keys()
    assert all(np.array_equal(found[name], scale) for name, scale in scales.items())


O_PROJ = "layers.0.attn.o_proj"


def with_value(value: float, place: int = 3) -> Mapping[str, np.ndarray]:
    scale = np.ones(64, np.float32)
    scale[place] = value
    return {"layers.0.attn.q_proj": scale}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a safetensors file"),
        (b"\xff" * 8, "not a safetensors file"),
        (b"\x02\0\0\0\0\0\0\0{}garbage", "not a safetensors file"),
        (save(random_scales(BASE))[:-1], "not a safetensors file"),
        ({"layers.2.attn.q_proj": np.ones(64, np.float32)}, "'layers.2.attn.q_proj' is .* no input of this decoder"),
        ({"layers.0.attn.k_proj": np.ones(64, np.float32)}, "no input of this decoder"),
        ({"a\nb": np.ones(64, np.float32)}, r"'a\\nb' is .* no input of this decoder"),
        ({O_PROJ: np.ones(65, np.float32)}, r"is float32\[65\], expected float32\[64\]"),
        ({O_PROJ: np.ones((1, 64), np.float32)}, r"is float32\[1, 64\], expected float32\[64\]"),
        ({O_PROJ: np.ones(64, np.float16)}, r"is float16\[64\], expected float32\[64\]"),
        (with_value(0), "scales from 0.0 to 1.0, expected 0.0001 to 10000"),
        (with_value(-1), "scales from -1.0 to 1.0"),
        (with_value(1e5), "scales from 1.0 to 100000.0"),
        (with_value(float("inf")), "scales from 1.0 to inf"),
        (with_value(float("nan")), "scales from nan to nan"),
        ({O_PROJ: np.linspace(1, 2, 64, dtype=np.float32)}, "different scales for one feature of layers.0.attn.v_proj"),
    ],
)
def test_files_that_lie(content: bytes | Mapping[str, np.ndarray], message: str, tmp_path: Path) -> None:
    (tmp_path / SCALING).write_bytes(content if isinstance(content, bytes) else save(dict(content)))
    with pytest.raises(PackageError, match=message) as caught:
        Scaling.open(tmp_path, BASE)
    assert "\n" not in str(caught.value)
    assert SCALING in str(caught.value)


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "I64", "BOOL"])
def test_types_that_scales_do_not_have(dtype: str, tmp_path: Path) -> None:
    size = {"BF16": 2, "I64": 8}.get(dtype, 1)
    header = json.dumps({O_PROJ: {"dtype": dtype, "shape": [64], "data_offsets": [0, 64 * size]}}).encode()
    (tmp_path / SCALING).write_bytes(len(header).to_bytes(8, "little") + header + bytes(64 * size))
    with pytest.raises(PackageError, match=r"scaling\.safetensors: ") as caught:
        Scaling.open(tmp_path, BASE)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_of_the_package(tmp_path: Path) -> None:
    package, path = tmp_path / "package", tmp_path / "package" / SCALING
    package.mkdir()
    save_file(random_scales(BASE), tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"scaling\.safetensors: links to .* outside"):
        Scaling.open(package, BASE)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match="not a regular file"):
        Scaling.open(package, BASE)
    path.rmdir()
    with path.open("wb") as file:
        file.truncate((1 << 28) + 1)
    with pytest.raises(CheckpointError, match="268435457 bytes exceed the limit"):
        Scaling.open(package, BASE)


def test_weights_that_leave_the_range_of_floats() -> None:
    class Huge(RandomDecoder):
        def read(self, role: str) -> np.ndarray:
            return super().read(role) * np.float32(3e37)

    tensors = Scaling(BASE, with_value(9e3)).tensors(Huge(BASE))
    with pytest.raises(PackageError, match=r"layers\.0\.attn\.q_proj\.weight: scaled .* leaves the range of float32"):
        tensors.read("layers.0.attn.q_proj.weight")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("checkpoint") / "biased", "biased_mqa")


@pytest.fixture(scope="module")
def scaled(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Biases, one key head for five queries, int8 by gptq; `up` by rounding, and what nobody has seen stays."""
    package = tmp_path_factory.mktemp("scaled") / "package"
    rounded = Precision(Weights.INT8, 0)
    policy = replace(INT8, overrides=(("*.up_proj", replace(rounded, method=rounded.method.ROUND)),))
    with open_model(checkpoint) as model:
        known = Known(model.spec)
    assert convert(checkpoint, package, policy=policy, calibration=known).scaled_inputs == 8
    return package


@pytest.fixture
def package(scaled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(scaled, tmp_path / "package"))


@pytest.fixture
def check(package: Path, checkpoint: Path) -> Callable[[], Validation]:
    return lambda: validate(package, checkpoint, FEW)


def failing(found: Validation) -> list[str]:
    return [one.role for one in found.weights if not one.holds]


def test_a_scaled_package_holds(package: Path, check: Callable[[], Validation]) -> None:
    assert json.loads((package / MANIFEST).read_text())["summary"]["scaled_inputs"] == 8
    assert len(load_file(package / SCALING)) == 8
    found = check()
    assert found.holds
    exact = {one.role for one in found.weights if not one.by_error}
    assert {"layers.0.input_norm", "layers.0.attn.v_proj.bias", "layers.1.mlp.up_proj"} <= exact
    twins = [one for one in found.logits if one.way is Way.SCALED]
    assert [one.tokens for one in twins] == [1, 12]
    assert all(0 < one.value < 1e-4 and one.tolerance == 1e-3 for one in twins)


def test_scales_that_do_not_cancel_are_found(check: Callable[[], Validation], monkeypatch: pytest.MonkeyPatch) -> None:
    """A norm that is forgotten on both sides alike, as a mistake in the code would have it."""
    whole = Scaling.tensors

    def without_norms(self: Scaling, tensors: object) -> object:
        found = whole(self, tensors)  # type: ignore[arg-type]
        rows = {role: scale for role, scale in self._rows.items() if not role.endswith("norm")}
        return _ScaledTensors(found._tensors, self._columns, rows)  # type: ignore[attr-defined]

    monkeypatch.setattr(Scaling, "tensors", without_norms)
    twins = [one.holds for one in check().logits if one.way is Way.SCALED]
    assert not any(twins)


def flipped(package: Path, name: str, place: int, bits: int) -> None:
    """Change one byte of a tensor in the data file or in the graphs."""
    for file in ("model.onnx", "engine.onnx"):
        model = onnx.load_model(package / file, load_external_data=False)
        (tensor,) = (one for one in model.graph.initializer if one.name == name)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            offset = next(int(entry.value) for entry in tensor.external_data if entry.key == "offset")
            data = bytearray((package / MODEL_DATA).read_bytes())
            data[offset + place] ^= bits
            (package / MODEL_DATA).write_bytes(data)
            return
        values = bytearray(tensor.raw_data)
        values[place] ^= bits
        tensor.raw_data = bytes(values)
        (package / file).write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("name", "place", "bits", "role"),
    [
        ("model.layers.0.mlp.down_proj.weight", 5, 0x40, "layers.0.mlp.down_proj"),
        ("model.layers.1.attn.qkv_proj.norm_weight", 0, 1, "layers.1.input_norm"),
        ("model.layers.0.attn.qkv_proj.bias", -4, 1, "layers.0.attn.v_proj.bias"),
    ],
)
def test_a_changed_tensor_is_found(
    name: str, place: int, bits: int, role: str, package: Path, check: Callable[[], Validation]
) -> None:
    flipped(package, name, place, bits)
    assert failing(check()) == [role]


def test_changed_scales_are_found(package: Path, check: Callable[[], Validation]) -> None:
    scales = load_file(package / SCALING)
    scales["layers.1.mlp.gate_proj"][7] *= np.float32(1.01)
    save_file(scales, package / SCALING)
    found = check()
    assert {"layers.1.post_attention_norm", "layers.1.mlp.up_proj"} <= set(failing(found))
    # They cancel all the same.
    assert all(one.holds for one in found.logits)


def test_scales_that_are_missing_or_of_another_package(package: Path, check: Callable[[], Validation]) -> None:
    scales = load_file(package / SCALING)
    del scales["layers.1.mlp.gate_proj"]
    save_file(scales, package / SCALING)
    with pytest.raises(PackageError, match=r"summary\.scaled_inputs is 8, scaling\.safetensors has 7"):
        check()
    (package / SCALING).unlink()
    with pytest.raises(PackageError, match=r"summary\.scaled_inputs is 8, scaling\.safetensors has 0"):
        check()
    save_file(random_scales(BASE), package / SCALING)
    with pytest.raises(PackageError, match=r"scaling\.safetensors: 'layers\..*' is float32\[\d+\], expected float32"):
        check()


def test_a_report_compares_behind_the_scales(scaled: Path, checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(np.random.default_rng(0).choice(["hello", "world", "low"], 300)), encoding="utf-8")
    found = measure(scaled, checkpoint, [text])
    blocks = [layer for layer in found.layers if layer.role.startswith("layers.")]
    manifest = json.loads((scaled / MANIFEST).read_text())
    errors = {layer["role"]: layer["relative_error"] for layer in manifest["layers"]}
    for layer in blocks:
        assert 10 ** (-layer.sqnr / 20) == pytest.approx(errors[layer.role], rel=1e-3)
        assert layer.output_error is not None
        # The statistics are made up.
        assert 0 < layer.output_error < 0.5


def test_packages_and_exports_of_a_scaled_package(scaled: Path, tmp_path: Path) -> None:
    convert(scaled, tmp_path / "again", policy=KEPT)
    assert initializers(tmp_path / "again") == initializers(scaled)
    assert not (tmp_path / "again" / SCALING).exists()
    assert json.loads((tmp_path / "again" / MANIFEST).read_text())["summary"]["scaled_inputs"] == 0
    assert validate(tmp_path / "again", scaled, FEW).holds
    export(scaled, tmp_path / "dense", SafetensorsOptions())
    export(scaled, tmp_path / "model.gguf", GgufOptions())
    for path, tolerance in ((tmp_path / "dense", 0), (tmp_path / "model.gguf", 1e-3)):
        with open_model(scaled) as package, open_model(path) as other:
            for name, _ in package.spec.tensors():
                expected = package.tensors.read(name)
                np.testing.assert_allclose(other.tensors.read(name), expected, rtol=tolerance, atol=tolerance)


def test_no_scales_of_an_earlier_package_are_left(package: Path, checkpoint: Path) -> None:
    with open_model(checkpoint) as model:
        known = Known(model.spec)
    found = convert(checkpoint, package, policy=INT8, calibration=known, scaling=False, overwrite=True)
    assert found.scaled_inputs == 0
    assert not (package / SCALING).exists()
    assert json.loads((package / MANIFEST).read_text())["summary"]["scaled_inputs"] == 0
    assert validate(package, checkpoint, FEW).holds
