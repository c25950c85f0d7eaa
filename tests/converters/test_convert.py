"""A conversion as a whole: the directory, its determinism, and who opens it."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import numpy as np
import onnx
import pytest
from genai import genai_tokens
from tiny_models import TINY, prompts, write_checkpoint

import bitnet_onnx
from bitnet_onnx.converters import Fallback, convert
from bitnet_onnx.converters.onnx._data_file import ALIGNMENT
from bitnet_onnx.converters.onnx._linears import LayerRecord
from bitnet_onnx.converters.onnx._tokenizer_file import compact_tokenizer
from bitnet_onnx.errors import InputError, UnsupportedError
from bitnet_onnx.policy import Policy
from bitnet_onnx.runtime import Device, SamplingParameters, load

FILES = {
    "bitnet_onnx.json",
    "config.json",
    "genai_config.json",
    "generation_config.json",
    "model.onnx",
    "model.onnx.data",
    "engine.onnx",
    "policy.toml",
    "tokenizer.json",
    "tokenizer_config.json",
}


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def package(tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("package") / "package"
    convert(tiny_checkpoint("untied_gqa"), path, fallback=Fallback.EXACT)
    return path


def test_the_files_of_a_package(package: Path, tiny_checkpoint: Callable[[str], Path]) -> None:
    source = tiny_checkpoint("untied_gqa")
    assert set(contents(package)) == FILES
    assert (package / "tokenizer_config.json").read_bytes() == (source / "tokenizer_config.json").read_bytes()
    assert (package / "tokenizer.json").read_bytes() == compact_tokenizer((source / "tokenizer.json").read_bytes())
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert json.loads((package / name).read_text()) == json.loads((source / name).read_text())


def test_the_graph_passes_the_checker_and_its_data_is_aligned(package: Path) -> None:
    onnx.checker.check_model(package / "model.onnx", full_check=True)
    model = onnx.load(package / "model.onnx", load_external_data=False)
    assert (model.ir_version, model.producer_name) == (10, "bitnet-onnx")
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 21, "com.microsoft": 1, "bitnet": 1}
    external = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    assert external
    for tensor in external:
        place = {entry.key: entry.value for entry in tensor.external_data}
        assert place["location"] == "model.onnx.data"
        assert int(place["offset"]) % ALIGNMENT == 0
    names = [value.name for value in (*model.graph.input, *model.graph.output)]
    assert names[:4] == ["input_ids", "attention_mask", "past_key_values.0.key", "past_key_values.0.value"]
    assert names[6:] == ["logits", *(f"present.{i}.{part}" for i in range(2) for part in ("key", "value"))]


def test_the_manifest(package: Path, tiny_checkpoint: Callable[[str], Path]) -> None:
    manifest = json.loads((package / "bitnet_onnx.json").read_text())
    assert manifest["format_version"] == 2
    assert manifest["source"]["name"] == "untied_gqa"
    assert len(manifest["source"]["sha256"]) == 64
    assert manifest["architecture"]["head_dim"] == 16
    assert manifest["operator"] == {"domain": "bitnet", "version": 1, "fallback": "exact"}
    bits = {layer["role"]: layer["activation_bits"] for layer in manifest["layers"]}
    # A look-up has no activations.
    assert (bits.pop("embed_tokens"), bits.pop("lm_head"), set(bits.values())) == (0, 16, {8})
    weights = sum(layer["shape"][0] * layer["shape"][1] for layer in manifest["layers"])
    bits = sum(layer["shape"][0] * layer["shape"][1] * layer["bits_per_weight"] for layer in manifest["layers"])
    assert manifest["summary"]["parameters"] == weights
    assert manifest["summary"]["bits_per_weight"] == pytest.approx(bits / weights, abs=1e-3)


@pytest.mark.parametrize("name", TINY)
def test_the_same_twice_gives_the_same_bytes(name: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    for directory in ("one", "two"):
        convert(tiny_checkpoint(name), tmp_path / directory)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_progress_counts_every_weight(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    seen: list[tuple[int, int, LayerRecord]] = []
    conversion = convert(
        tiny_checkpoint("tied_mha"), tmp_path / "package", progress=lambda *report: seen.append(report)
    )
    sizes = [layer.shape[0] * layer.shape[1] for layer in conversion.layers]
    assert len(sizes) == 15
    assert [(done, total) for done, total, _ in seen] == [(done, sum(sizes)) for done in accumulate(sizes)]
    assert conversion.layers == tuple(record for _, _, record in seen)
    assert conversion.data_bytes == (tmp_path / "package" / "model.onnx.data").stat().st_size
    assert conversion.bits_per_weight == pytest.approx(
        bitnet_onnx.inspect(tmp_path / "package").bits_per_weight, abs=1e-3
    )


def test_token_ids_come_from_the_configuration_where_nothing_else_has_them(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", TINY["tied_mha"])
    (source / "generation_config.json").unlink()
    convert(source, tmp_path / "package")
    assert json.loads((tmp_path / "package" / "generation_config.json").read_text()) == {
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    assert json.loads((tmp_path / "package" / "genai_config.json").read_text())["model"]["eos_token_id"] == 2
    assert 2 in load(tmp_path / "package", device=Device()).stop_ids


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({"eos_token_id": [5, 6], "bos_token_id": 1}, (1, [5, 6], 5)),
        ({"eos_token_id": 5, "pad_token_id": 7}, (5, 5, 7)),
        ({"eos_token_id": None, "temperature": 0.5}, (0, 0, 0)),
    ],
)
def test_token_ids_for_genai(generation: dict[str, object], expected: tuple[object, ...], tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", TINY["tied_mha"])
    (source / "generation_config.json").write_text(json.dumps(generation))
    convert(source, tmp_path / "package")
    model = json.loads((tmp_path / "package" / "genai_config.json").read_text())["model"]
    assert (model["bos_token_id"], model["eos_token_id"], model["pad_token_id"]) == expected


@pytest.mark.parametrize("fallback", list(Fallback))
@pytest.mark.parametrize("name", TINY)
def test_genai_opens_the_directory_and_agrees(
    name: str, fallback: Fallback, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    convert(tiny_checkpoint(name), tmp_path / "package", fallback=fallback)
    prompt = [int(token) for token in prompts(515)[1]]
    ours = load(tmp_path / "package", device=Device()).generate(prompt, SamplingParameters(max_new_tokens=24))
    assert genai_tokens(tmp_path / "package", prompt, 24) == list(ours.ids)


def test_the_python_api(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    conversion = bitnet_onnx.convert(
        tiny_checkpoint("tied_mha"), tmp_path / "package", weights="int8", head="int4", fallback="exact"
    )
    assert {str(layer.weights) for layer in conversion.layers} == {"int4", "int8"}
    found = bitnet_onnx.inspect(tmp_path / "package")
    assert (found.kind, found.family) == ("package", "llama")
    generation = bitnet_onnx.load(tmp_path / "package").generate(
        [1, 2, 3], bitnet_onnx.SamplingParameters(max_new_tokens=3)
    )
    assert len(generation.ids) <= 3
    with pytest.raises(InputError, match="fallback is 'slow': choose fast or exact"):
        bitnet_onnx.convert(tiny_checkpoint("tied_mha"), tmp_path / "other", fallback="slow")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        bitnet_onnx.nothing  # noqa: B018
    assert not (tmp_path / "other").exists()


def test_a_chat_template_is_carried_over(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", TINY["tied_mha"])
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    (source / "chat_template.jinja").write_text(template)
    convert(source, tmp_path / "package")
    assert (tmp_path / "package" / "chat_template.jinja").read_text() == template
    model = load(tmp_path / "package", device=Device())
    assert model.encode([{"role": "user", "content": "ab"}]) == model.encode("ab")


def test_without_one_a_chat_is_refused(package: Path) -> None:
    with pytest.raises(UnsupportedError, match="no chat template"):
        load(package, device=Device()).chat([{"role": "user", "content": "x"}])


def test_the_default_policy_is_auto() -> None:
    assert Policy().default.weights == "auto"
    assert np.isfinite(Policy().default.group_size)
