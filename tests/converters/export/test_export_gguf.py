"""GGUF files: the codes survive, the metadata say all, and what they cannot say is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from exports import CHOSEN, TERNARY, assert_same_values, codes, context_of, wide, with_merges, write_source
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tiny_models import TINY, write_checkpoint

from bitnet_onnx.converters import FloatType, GgufOptions, GgufTernary, Target, convert, export
from bitnet_onnx.converters.checkpoints.gguf import GgufCheckpoint
from bitnet_onnx.converters.export._gguf_ternary import block_scales, pack_blocks
from bitnet_onnx.converters.model import open_model
from bitnet_onnx.errors import InputError, PackageError, UnsupportedError
from bitnet_onnx.policy import Policy, Precision, Weights
from bitnet_onnx.quantized import TERNARY as GRID
from bitnet_onnx.quantized import QuantizedTensor

HALF = 2**-11


def write_wide(directory: Path, name: str, **changes: object) -> Path:
    model = wide(name)
    return with_merges(write_checkpoint(directory, replace(model, config={**model.config, **changes})))


def read_types(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


def field(path: Path, key: str) -> object:
    found = gguf.GGUFReader(path).get_field(key)
    assert found is not None, key
    return found.contents()


@pytest.mark.parametrize("name", CHOSEN)
def test_a_family_comes_back_or_is_refused_by_what_gguf_cannot_say(name: str, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", name)
    target, refusal = tmp_path / "out.gguf", None
    try:
        written = export(source, target, GgufOptions(dtype=FloatType.FLOAT32), context_length=context_of(name))
    except UnsupportedError as error:
        refusal = str(error)
    if refusal is not None:
        assert "choose --to safetensors" in refusal
        assert "\n" not in refusal
        assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
        return
    assert written.target is Target.GGUF
    assert written.files == {"out.gguf": target.stat().st_size}
    if written.losses:  # masters became codes
        convert(source, tmp_path / "package", policy=Policy(Precision(Weights.TERNARY), Precision(Weights.FLOAT32)))
        assert_same_values(tmp_path / "package", target, rtol=HALF, spec=context_of(name) is None)
    else:
        assert_same_values(source, target, spec=context_of(name) is None)


@pytest.mark.parametrize("name", ["untied_gqa", "tied_mha", "biased_mqa", "bitnet", "llama_linear", "llama_relu"])
def test_these_are_not_refused(name: str, tmp_path: Path) -> None:
    if name == "llama_relu":  # llama.cpp's Llama has SiLU
        with pytest.raises(UnsupportedError, match="another activation: GGUF has no word for 'relu'"):
            export(write_source(tmp_path / "source", name), tmp_path / "out.gguf", GgufOptions())
        return
    assert export(write_source(tmp_path / "source", name), tmp_path / "out.gguf", GgufOptions()).total_bytes


@pytest.mark.parametrize("kind", GgufTernary)
@pytest.mark.parametrize("name", ["untied_gqa", "biased_mqa", "bitnet"])
def test_codes_survive(name: str, kind: GgufTernary, tmp_path: Path) -> None:
    convert(write_wide(tmp_path / "source", name), tmp_path / "package", policy=TERNARY)
    written = export(tmp_path / "package", tmp_path / "out.gguf", GgufOptions(kind))
    assert f"14 ternary matrices as {kind.upper()}" in written.layout
    stored = read_types(tmp_path / "out.gguf")
    assert {stored[f"blk.1.{stem}.weight"] for stem in ("attn_q", "attn_output", "ffn_down")} == {kind.upper()}
    assert {stored["token_embd.weight"], stored["output_norm.weight"]} == {"F16", "F32"}
    # A scale beside the matrix is exact; in the blocks it is a float16.
    exact = name == "bitnet"
    assert any("scales as float16" in loss for loss in written.losses) is not exact
    convert(tmp_path / "out.gguf", tmp_path / "again", policy=TERNARY)
    with open_model(tmp_path / "package") as before, open_model(tmp_path / "again") as after:
        for (role, expected), (_, found) in zip(codes(before), codes(after), strict=True):
            assert expected is not None
            assert found is not None
            np.testing.assert_array_equal(found.raw, expected.raw, role)
            np.testing.assert_allclose(found.scale, expected.scale, rtol=0 if exact else HALF, err_msg=role)


@given(
    st.sampled_from(list(GgufTernary)),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 2**32 - 1),
)
def test_blocks_mean_what_the_gguf_package_reads(kind: GgufTernary, rows: int, blocks: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    raw = rng.integers(1, 4, (rows, blocks * 256), np.uint8)
    scale = rng.uniform(0.01, 2, rows).astype(np.float16).astype(np.float32)
    tensor = QuantizedTensor(raw, scale, GRID)
    packed = pack_blocks(tensor, block_scales(tensor, kind).astype(np.float16), kind)
    values = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[kind.upper()])
    np.testing.assert_array_equal(values, tensor.dequantize())


def test_scales_of_groups(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for group, stored in ((256, "TQ2_0"), (128, "Q4_0"), (32, "Q4_0")):
        source = write_wide(tmp_path / f"source{group}", "tied_mha", intermediate_size=1024)
        weights = load_file(source / "model.safetensors")
        for name, value in weights.items():
            if name.endswith("down_proj.weight"):
                steps = rng.uniform(0.5, 1, (256, 1024 // group)).astype(np.float16).astype(np.float32)
                weights[name] = np.sign(value) * np.repeat(steps, group, axis=1)
        save_file(weights, source / "model.safetensors")
        written = export(source, tmp_path / f"{group}.gguf", GgufOptions())
        assert read_types(tmp_path / f"{group}.gguf")["blk.0.ffn_down.weight"] == stored
        assert not any("scales" in loss for loss in written.losses)
        with open_model(tmp_path / f"{group}.gguf") as model:
            role = "layers.0.mlp.down_proj.weight"
            np.testing.assert_array_equal(
                model.tensors.read(role), weights["model.layers.0.mlp.down_proj.weight"], role
            )


@pytest.mark.parametrize("scale", [1e-9, 1e6])
def test_scales_beyond_float16(scale: float, tmp_path: Path) -> None:
    source = write_wide(tmp_path / "source", "tied_mha")
    weights = load_file(source / "model.safetensors")
    name = "model.layers.0.self_attn.v_proj.weight"
    weights[name] = np.sign(weights[name]) * np.float32(scale)
    save_file(weights, source / "model.safetensors")
    written = export(source, tmp_path / "out.gguf", GgufOptions(dtype=FloatType.FLOAT32))
    assert written.losses == ("ternary matrices with scales beyond float16 as float32",)
    assert_same_values(source, tmp_path / "out.gguf")
    if scale > 1:
        with pytest.raises(UnsupportedError, match="float16 ends at 65504; choose bfloat16 or float32"):
            export(source, tmp_path / "half.gguf", GgufOptions())


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("tied_mha", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "another attention: GGUF has no word"),
        ("bitnet", {"hidden_act": "gelu"}, "another activation: GGUF has no word for 'gelu'"),
        ("bitnet", {"tie_word_embeddings": False}, r"'bitnet-b1\.58' have no tensor 'output\.weight'"),
    ],
)
def test_what_gguf_has_no_word_for(name: str, changes: dict[str, object], message: str, tmp_path: Path) -> None:
    source = write_wide(tmp_path / "source", name, **changes)
    with pytest.raises(UnsupportedError, match=message) as caught:
        export(source, tmp_path / "out.gguf", GgufOptions())
    assert str(caught.value).endswith("choose --to safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_the_two_bitnets(tmp_path: Path) -> None:
    for act, architecture in (("relu2", "bitnet-b1.58"), ("silu", "bitnet")):
        source = write_wide(tmp_path / act, "bitnet", hidden_act=act)
        written = export(source, tmp_path / f"{act}.gguf", GgufOptions())
        assert f"architecture {architecture}" in written.layout
        assert ("not by llama.cpp" in written.layout) is (act == "relu2")
        assert field(tmp_path / f"{act}.gguf", "general.architecture") == architecture
        assert gguf.GGUFReader(tmp_path / f"{act}.gguf").get_tensor(0).name == "token_embd.weight"


def test_yarn_keeps_its_rule_and_llama3_its_divisors(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 16.0}
    source = write_wide(tmp_path / "yarn", "tied_mha", rope_scaling=yarn)
    export(source, tmp_path / "yarn.gguf", GgufOptions(dtype=FloatType.FLOAT32))
    assert field(tmp_path / "yarn.gguf", "llama.rope.scaling.type") == "yarn"
    assert_same_values(source, tmp_path / "yarn.gguf")
    source = write_wide(tmp_path / "llama3", "untied_gqa")
    export(source, tmp_path / "llama3.gguf", GgufOptions(dtype=FloatType.FLOAT32))
    assert read_types(tmp_path / "llama3.gguf")["rope_freqs.weight"] == "F32"
    # From there the divisors go on into a Hugging Face directory, which has a rule that takes them.
    with open_model(source) as before, open_model(tmp_path / "llama3.gguf") as after:
        assert before.spec.attention[0].rotary is not None
        assert after.spec.attention[0].rotary is not None
        assert after.spec.attention[0].rotary.divisors == pytest.approx(before.spec.attention[0].rotary.divisors)


def test_metadata_and_tokenizer(tmp_path: Path) -> None:
    source = write_wide(tmp_path / "source", "untied_gqa")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    export(source, tmp_path / "out.gguf", GgufOptions())
    path = tmp_path / "out.gguf"
    expected = {
        "general.name": "source",
        "general.quantized_by": "bitnet-onnx",
        "general.file_type": int(gguf.LlamaFileType.MOSTLY_F16),
        "llama.block_count": 2,
        "llama.attention.head_count_kv": 2,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": "{{ messages }}",
    }
    assert {key: field(path, key) for key in expected} == expected
    with GgufCheckpoint(path) as checkpoint, open_model(source) as model:
        document = json.loads(checkpoint.tokenizer().files["tokenizer.json"])
        before = json.loads(model.tokenizer["tokenizer.json"])
        assert document["model"]["vocab"] == before["model"]["vocab"]
        assert [tuple(merge.split(" ")) for merge in document["model"]["merges"]] == [
            tuple(merge) for merge in before["model"]["merges"]
        ]


def test_other_precisions_leave_as_floats(tmp_path: Path) -> None:
    convert(write_source(tmp_path / "source", "tied_mha"), tmp_path / "package", policy=Policy(Precision(Weights.INT4)))
    written = export(tmp_path / "package", tmp_path / "out.gguf", GgufOptions(dtype=FloatType.BFLOAT16))
    assert "14 matrices of the blocks as bfloat16" in written.layout
    assert_same_values(tmp_path / "package", tmp_path / "out.gguf", rtol=2**-8, atol=1e-30)


def test_the_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "tied_mha")
    target = tmp_path / "new" / "out.gguf"

    def interrupt(done: int, total: int, name: str) -> None:
        if name == "blk.1.ffn_up.weight":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(source, target, GgufOptions(), written=interrupt)
    assert not (tmp_path / "new").exists()
    seen: list[tuple[int, int, str]] = []
    export(source, target, GgufOptions(), written=lambda *report: seen.append(report))
    done = [done for done, _, _ in seen]
    assert done == sorted(set(done))
    assert {total for _, total, _ in seen} == {done[-1]}
    assert seen[-1][2] == "output_norm.weight"
    with pytest.raises(PackageError, match="--overwrite"):
        export(source, target, GgufOptions())
    size = target.stat().st_size
    export(source, target, GgufOptions(dtype=FloatType.FLOAT32), overwrite=True)
    assert target.stat().st_size > size
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.gguf"]


def test_what_is_not_replaced(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "tied_mha")
    target = tmp_path / "out.gguf"
    target.write_bytes(b"GGUF of someone else")
    with pytest.raises(PackageError, match="written by something else"):
        export(source, target, GgufOptions(), overwrite=True)
    assert target.read_bytes() == b"GGUF of someone else"
    target.unlink()
    target.mkdir()
    with pytest.raises(PackageError, match="exists and is not a file"):
        export(source, target, GgufOptions(), overwrite=True)
    with pytest.raises(InputError, match=r"the name of a GGUF file ends in \.gguf"):
        export(source, tmp_path / "out", GgufOptions())
    (tmp_path / "link.gguf").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PackageError, match="is a symbolic link: name the file itself"):
        export(source, tmp_path / "link.gguf", GgufOptions(), overwrite=True)


def test_no_family_no_architecture(tmp_path: Path) -> None:
    from bitnet_onnx.converters.export._gguf_metadata import architecture_for

    with open_model(write_source(tmp_path / "source", "tied_mha")) as model:
        other = replace(model, spec=replace(model.spec, family="gptj"))
        with pytest.raises(UnsupportedError, match="no GGUF architecture for a gptj decoder"):
            architecture_for(other)


def test_without_the_tokenizer(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", TINY["tied_mha"])
    with pytest.raises(UnsupportedError, match="a tokenizer without merges; --no-tokenizer"):
        export(source, tmp_path / "out.gguf", GgufOptions())
    export(source, tmp_path / "out.gguf", GgufOptions(tokenizer=False))
    assert field(tmp_path / "out.gguf", "tokenizer.ggml.model") == "none"
    assert field(tmp_path / "out.gguf", "llama.vocab_size") == 515
