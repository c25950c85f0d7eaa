"""`bitnet-onnx benchmark shape` and the models it makes."""

from __future__ import annotations

import json
import os
import string
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import bitnet_onnx
from bitnet_onnx.benchmarks import shape
from bitnet_onnx.benchmarks._process import llama_version
from bitnet_onnx.benchmarks._synthetic import RandomTensors
from bitnet_onnx.benchmarks._synthetic_gguf import write_gguf
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.errors import InputError
from bitnet_onnx.ternary import detect

TINY = shape.SHAPES["tiny"].spec
LLAMA = replace(TINY, family="llama", activation="silu", attention_sub_norm=False, mlp_sub_norm=False)


@pytest.mark.usefixtures("llama_stand_in")
def test_quick_with_a_peer_and_again(benchmark, checked, tmp_path: Path) -> None:
    cache, out = tmp_path / "cache", tmp_path / "shape.json"
    arguments = ("shape", "tiny", "--quick", "--threads", "1", "--cache", cache, "--out", out)
    assert benchmark(*arguments).status == 0
    report = checked(out, "shape")
    cases = {comparison["case"]: comparison["candidates"].keys() for comparison in report["comparisons"]}
    assert cases["prefill 8"] == {"bitnet", "llama.cpp TQ2_0"}
    assert report["settings"]["package"] == "tiny"
    assert report["notes"][0] == "The weights are random ternary, in the sizes of tiny."
    assert str(tmp_path) not in out.read_text()

    def times() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}

    made = times()
    assert len(made) == 2
    assert benchmark(*arguments).status == 0
    assert times() == made
    assert benchmark(*arguments, "--rebuild").status == 0
    assert times().keys() == made.keys()
    assert all(times()[name] > made[name] for name in made)


def test_quick_without_the_peer(benchmark, checked, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shape, "llama_version", lambda python: None)
    monkeypatch.setenv("BITNET_ONNX_CACHE", str(tmp_path))
    out = tmp_path / "shape.json"
    result = benchmark("shape", "tiny", "--quick", "--stock", "--threads", "1", "--out", out)
    assert (result.status, result.err) == (0, "")
    assert "has no llama-cpp-python: that peer is missing" in result.out
    report = checked(out, "shape")
    assert report["comparisons"][0]["candidates"].keys() == {"bitnet", "stock ONNX Runtime"}
    assert [path.name.startswith("tiny-") for path in (tmp_path / "benchmarks").iterdir()] == [True]


def test_the_caveat_is_told(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shape, "llama_version", lambda python: None)
    monkeypatch.setitem(shape.SHAPES, "odd", replace(shape.SHAPES["tiny"], caveat="odd in every way."))
    settings = shape.ModelSettings(
        prefill_tokens=2, decode_tokens=1, context=4, threads=(1,), rounds=1, starts=1, stock=False
    )
    steps: list[str] = []
    report = shape.measure("odd", tmp_path, settings, progress=steps.append)
    assert report.notes[1] == "The shape is odd's but for this: odd in every way."
    assert steps[0].startswith("making ")


def test_the_sizes_of_the_real_model() -> None:
    spec = shape.SHAPES["bitnet-2b4t"].spec
    linears = [size for role, size in spec.tensors() if len(size) == 2 and role != "embed_tokens.weight"]
    assert sum(rows * columns for rows, columns in linears) == 2_084_044_800
    assert dict(spec.tensors())["embed_tokens.weight"] == (128256, 2560)
    assert "lm_head.weight" not in dict(spec.tensors())
    assert (spec.activation, spec.attention_sub_norm, spec.mlp_sub_norm) == ("relu2", True, True)
    assert (spec.attention[0].rotary.theta, spec.context_length, spec.norm_epsilon) == (500000, 4096, 1e-5)


def test_linear_layers_are_kept_ternary_and_the_head_is_int8(tiny_package: Path) -> None:
    layers = {layer["role"]: layer for layer in json.loads((tiny_package / "bitnet_onnx.json").read_text())["layers"]}
    assert layers.pop("embed_tokens")["weights"] == "int8"
    assert len(layers) == 7 * TINY.num_hidden_layers
    assert all(layer["weights"] == "ternary" and layer["relative_error"] == 0 for layer in layers.values())


def test_the_package_is_like_any_other(tiny_package: Path) -> None:
    assert bitnet_onnx.inspect(tiny_package).sizes["hidden_size"] == TINY.hidden_size
    model = bitnet_onnx.load(tiny_package, threads=1)
    generation = model.generate("abc", bitnet_onnx.SamplingParameters(max_new_tokens=4))
    assert len(generation.ids) == 4
    logits = model.session.forward([1, 2, 3], model.session.new_cache())
    assert np.isfinite(logits).all()
    assert logits.std() > 0.1
    # Merges are what takes a tokenizer its time: text is made of merged tokens where it can be.
    text = "".join(left + right for left in string.ascii_letters for right in string.ascii_letters)
    assert max(model.tokenizer.encode(text, parse_special=False, add_bos=False)) >= 256


def test_tensors_are_the_same_in_every_run() -> None:
    first, second = RandomTensors(TINY), RandomTensors(TINY)
    role = "layers.1.mlp.up_proj.weight"
    assert np.array_equal(first.read(role), second.read(role))
    assert not np.array_equal(first.read(role), first.read("layers.0.mlp.up_proj.weight"))
    assert np.unique(first.read(role)).size == 3
    assert (first.read("norm.weight") == 1).all()
    biased = RandomTensors(replace(TINY, qkv_bias=True))
    assert (biased.read("layers.0.attn.q_proj.bias") == 0).all()
    assert first.read_rows("embed_tokens.weight", 10, 14).shape == (4, TINY.hidden_size)


def test_the_gguf_file_has_the_same_shape(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "peer.gguf"
    write_gguf(TINY, path, "tiny")
    assert [entry.name for entry in path.parent.iterdir()] == ["peer.gguf"]
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert tuple(tensors["token_embd.weight"].shape) == (TINY.hidden_size, TINY.vocab_size)
    assert "output.weight" not in tensors
    assert len(tensors) == 2 + 11 * TINY.num_hidden_layers
    assert list(tensors["blk.1.attn_sub_norm.weight"].shape) == [TINY.attention_size]
    assert list(tensors["blk.1.ffn_sub_norm.weight"].shape) == [TINY.intermediate_size]
    down = tensors["blk.1.ffn_down.weight"]
    assert tuple(down.shape) == (TINY.intermediate_size, TINY.hidden_size)
    values = gguf.dequantize(down.data, down.tensor_type)
    assert detect(values) is not None
    assert np.unique(values).size == 3
    embedding = gguf.dequantize(tensors["token_embd.weight"].data, tensors["token_embd.weight"].tensor_type)
    assert np.isfinite(embedding).all()
    assert 0.1 < embedding.std() < 10


@pytest.mark.parametrize(
    ("spec", "architecture", "activation"), [(TINY, "bitnet", "relu2"), (LLAMA, "llama", None)], ids=["bitnet", "llama"]
)
def test_the_architecture_of_the_peer(
    spec: DecoderSpec, architecture: str, activation: str | None, tmp_path: Path
) -> None:
    write_gguf(spec, tmp_path / "peer.gguf", "tiny")
    reader = gguf.GGUFReader(tmp_path / "peer.gguf")
    assert reader.fields["general.architecture"].contents() == architecture
    assert reader.fields[f"{architecture}.rope.freq_base"].contents() == spec.attention[0].rotary.theta
    field = reader.fields.get(f"{architecture}.hidden_activation")
    assert (field and field.contents()) == activation
    assert any("sub_norm" in tensor.name for tensor in reader.tensors) == (architecture == "bitnet")


@pytest.mark.parametrize(
    "changes", [{"activation": "gelu"}, {"mlp_sub_norm": False}, {"activation": "silu"}, {"num_attention_heads": 8}]
)
def test_decoders_that_the_peer_does_not_have(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"odd is .* with sub-norms .*: llama\.cpp has silu without any"):
        write_gguf(replace(TINY, **changes), tmp_path / "x.gguf", "odd")
    assert not list(tmp_path.iterdir())


def test_widths_that_the_peer_cannot_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a layer of odd has 384 columns: TQ2_0 demands multiples of 256"):
        write_gguf(replace(TINY, intermediate_size=384), tmp_path / "x.gguf", "odd")


def test_the_real_peer_reads_the_file(benchmark, checked, tmp_path: Path) -> None:
    python = os.environ.get("BITNET_ONNX_LLAMA_PYTHON", sys.executable)
    if llama_version(python) is None:
        pytest.skip("llama-cpp-python is not installed here; BITNET_ONNX_LLAMA_PYTHON may name where it is")
    out = tmp_path / "shape.json"
    arguments = ("--quick", "--threads", "1", "--cache", tmp_path, "--llama-python", python, "--out", out)
    assert benchmark("shape", "tiny", *arguments).status == 0
    assert "llama.cpp TQ2_0" in checked(out, "shape")["comparisons"][0]["candidates"]
