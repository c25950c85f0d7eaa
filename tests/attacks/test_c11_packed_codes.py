"""Class 11: packed code 3; scale 0, NaN, infinite, missing; matrices, scales and configurations that do not agree."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path

import numpy as np
import pytest
from bitnet_models import CASES, DIVIDES, FALCON, MULTIPLIES, ONLINE, Packed, Stored, pack, packed, stored, write
from bounded_command import refused
from tiny_models import TINY

from bitnet_onnx.converters import convert
from bitnet_onnx.errors import CheckpointError, InputError, UnsupportedError

Q = "model.layers.0.self_attn.q_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"
SECONDS, BYTES = 10, 1_000_000_000


def refuse(
    tmp_path: Path, content: Packed, message: str, error: type[InputError] = CheckpointError, **changes: Stored | None
) -> None:
    """A conversion fails with one line, soon, and leaves nothing."""
    source = write(tmp_path / "source", content, **changes)
    began = time.process_time()
    with pytest.raises(error, match=message) as caught:
        convert(source, tmp_path / "out" / "package")
    assert time.process_time() - began < SECONDS
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.parent != source]


def with_code_3(codes: np.ndarray, row: int, column: int) -> Stored:
    """Packed, with the one code that means nothing."""
    data = pack(codes)
    quarter, rest = divmod(row, len(data))
    data[rest, column] |= 3 << 2 * quarter
    return stored(data, "U8")


@pytest.mark.parametrize(("row", "column"), [(0, 0), (15, 63), (16, 0), (47, 5), (63, 63)])
@pytest.mark.parametrize("quantization", [DIVIDES, MULTIPLIES])
def test_code_3_is_named_with_its_place(tmp_path: Path, row: int, column: int, quantization: dict[str, object]) -> None:
    content = packed(TINY["bitnet"], quantization)
    message = rf"model.safetensors: tensor '{Q}' holds the code 3, which means nothing, at row {row}, column {column}"
    refuse(tmp_path, content, message, **{Q: with_code_3(content.codes[Q], row, column)})


@pytest.mark.parametrize("quantization", [DIVIDES, MULTIPLIES])
@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (0.0, "BF16", "is 0.0: a weight_scale must be a finite number greater than 0"),
        (-0.0, "F32", "is -0.0: a weight_scale"),
        (-1.5, "BF16", "is -1.5: a weight_scale"),
        (np.nan, "F32", "holds nan at element 0"),
        (np.inf, "F16", "holds inf at element 0"),
        (-np.inf, "F32", "holds -inf at element 0"),
    ],
)
def test_scales_that_are_none(
    tmp_path: Path, quantization: dict[str, object], value: float, dtype: str, message: str
) -> None:
    content = packed(TINY["bitnet"], quantization)
    refuse(tmp_path, content, f"{DOWN}_scale' {message}", **{f"{DOWN}_scale": stored(np.array([value]), dtype)})


def test_a_scale_whose_reciprocal_is_infinite(tmp_path: Path) -> None:
    tiny = stored(np.array([1e-45], np.float32), "F32")
    refuse(tmp_path, packed(FALCON, DIVIDES), f"{Q}_scale' is 1.4.*e-45: a weight_scale", **{f"{Q}_scale": tiny})


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (stored(np.ones(64)), r"is BF16 \[64\]: expected one float"),
        (stored(np.ones((1, 1))), r"is BF16 \[1, 1\]: expected one float"),
        (stored(np.ones(0)), r"is BF16 \[0\]: expected one float"),
        (stored(np.ones(1), "U8"), r"is U8 \[1\]: expected one float"),
    ],
)
def test_scales_of_a_wrong_shape_or_type(tmp_path: Path, scale: Stored, message: str) -> None:
    refuse(tmp_path, packed(FALCON, DIVIDES), f"{Q}_scale' {message}", **{f"{Q}_scale": scale})


def test_a_scale_that_is_a_scalar_is_fine(tmp_path: Path) -> None:
    source = write(tmp_path / "source", packed(FALCON, DIVIDES), **{f"{Q}_scale": stored(np.array(8.0))})
    convert(source, tmp_path / "package")


def test_matrices_and_scales_that_are_missing(tmp_path: Path) -> None:
    content = packed(TINY["bitnet"], MULTIPLIES)
    refuse(tmp_path, content, f"{Q}' is packed, but '{Q}_scale' is missing", **{f"{Q}_scale": None})
    refuse(tmp_path, content, f"{Q}_scale' is the scale of '{Q}', which is missing", **{Q: None})
    floats = {Q: stored(np.ones((64, 64))), f"{Q}_scale": None}
    refuse(tmp_path, content, f"{Q}' is BF16 without a weight_scale: quantization_config says", **floats)


def test_shapes_that_contradict_the_configuration(tmp_path: Path) -> None:
    content = packed(TINY["bitnet"], MULTIPLIES)
    for shape, found in (((17, 64), [68, 64]), ((16, 32), [64, 32]), ((64, 64), [256, 64]), ((0, 64), [0, 64])):
        message = rf"{Q}' has shape \[{found[0]}, {found[1]}\]: the configuration demands \[64, 64\]"
        refuse(tmp_path, content, message, **{Q: stored(np.zeros(shape), "U8")})
    refuse(
        tmp_path,
        content,
        rf"{Q}' has shape \[1024\]: a ternary weight is a matrix",
        **{Q: stored(np.zeros(1024), "U8")},
    )
    # Rows that four do not divide cannot be packed at all.
    content.config["intermediate_size"] = 174
    refuse(tmp_path, content, r"has shape \[172, 64\]: the configuration demands \[174, 64\]")


def test_configurations_that_say_something_else(tmp_path: Path) -> None:
    content = packed(TINY["bitnet"], MULTIPLIES)
    quantization = content.config["quantization_config"]
    del content.config["quantization_config"]
    refuse(tmp_path, content, "belongs to packed weights, but config.json has no quantization_config that says how")
    content.config["is_bitnet_config"] = True
    refuse(tmp_path, content, "belongs to packed weights, but config.json has no quantization_config that says how")
    content.config["quantization_config"] = ONLINE
    refuse(tmp_path, content, r"belongs to packed weights, but .* masters \(quantization_mode online\)")
    content.config["quantization_config"] = {**quantization, "modules_to_not_convert": ["lm_head", "q_proj"]}
    refuse(tmp_path, content, f"{Q}' is ternary, but quantization_config says in modules_to_not_convert that it is not")
    content.config["quantization_config"] = {**quantization, "modules_to_not_convert": ["(a+)+$"]}
    refuse(tmp_path, content, "is a regular expression that is not read", UnsupportedError)
    content.config["quantization_config"] = {**quantization, "quant_method": "awq"}
    refuse(tmp_path, content, "quantization method 'awq' is not supported", UnsupportedError)


def test_a_scale_beside_floats_without_a_configuration(tmp_path: Path) -> None:
    content = CASES["llama_multiplies_dense"]()
    del content.config["quantization_config"]
    refuse(tmp_path, content, "weight_scale' belongs to packed weights, but config.json has no quantization_config")


def test_unpacked_weights_that_are_not_ternary(tmp_path: Path) -> None:
    content = CASES["llama_multiplies_dense"]()
    values = content.codes[DOWN].astype(np.float32)
    values[3, 7] = 0.5
    refuse(tmp_path, content, f"{DOWN}' holds 0.5, expected -1, 0 or 1, at row 3, column 7", **{DOWN: stored(values)})
    content.config["quantization_config"] = {**DIVIDES, "use_rms_norm": True}
    refuse(tmp_path, content, "is BF16: linear_class bitlinear stores U8, four codes a byte")
    integers = Stored("I8", (64, 64), bytes(64 * 64))
    content = packed(FALCON, MULTIPLIES)
    refuse(tmp_path, content, f"{Q}' is I8: expected packed U8, or -1, 0 and 1 as", **{Q: integers})


def test_norms_that_stand_in_some_linear_layers_only(tmp_path: Path) -> None:
    quantization = {**MULTIPLIES, "use_rms_norm": True, "modules_to_not_convert": ["lm_head", "down_proj"]}
    content = packed(FALCON, quantization, norms=True)
    for name in (DOWN, DOWN.replace(".1.", ".0.")):
        content.stored[name] = stored(content.codes[name])
        del content.stored[f"{name}_scale"]
    refuse(tmp_path, content, "use_rms_norm with .*down_proj' in modules_to_not_convert", UnsupportedError)


def test_the_original_has_eight_bits_and_one(tmp_path: Path) -> None:
    content = packed(TINY["bitnet"], DIVIDES)
    for field, value in (("input_bits", 4), ("weight_bits", 2)):
        content.config.update({"architectures": ["BitnetForCausalLM"], "input_bits": 8, "weight_bits": 1, field: value})
        refuse(
            tmp_path, content, f"config.json: {field} is {value}: a BitnetForCausalLM is read with", UnsupportedError
        )


def test_many_matrices_against_many_entries(tmp_path: Path) -> None:
    """Neither the list nor the names that are asked for can make matching slow."""
    entries = [".*a" * 42 + "b"] * 2 + [f"{'a' * 60}{index}" for index in range(10, 66)]
    names = [f"{'a' * 60}{index}" for index in range(100, 10100)]
    weight, scale = stored(np.zeros((1, 1)), "U8"), stored(np.ones(1))
    parts = {f"{name}.{kind}": part for name in names for kind, part in (("weight", weight), ("weight_scale", scale))}
    content = Packed({**FALCON.config, "quantization_config": {**DIVIDES, "modules_to_not_convert": entries}}, parts)
    refuse(tmp_path, content, "is missing")
    parts |= {"one.weight": stored(np.zeros((1, 1)), "U8")}
    refuse(tmp_path, content, "is one of 10001 packed matrices: the limit is 10000")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < 2 * BYTES


@pytest.mark.parametrize("case", ["bitnet_divides", "llama_multiplies"])
def test_truncated_files(tmp_path: Path, case: str) -> None:
    source = write(tmp_path / "source", CASES[case]())
    data = (source / "model.safetensors").read_bytes()
    for kept in (0, 7, 100, len(data) // 2, len(data) - 1):
        (source / "model.safetensors").write_bytes(data[:kept])
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            convert(source, tmp_path / "package")
    assert json.loads((source / "config.json").read_text())
    assert not (tmp_path / "package").exists()


def test_the_command_line(tmp_path: Path) -> None:
    content = packed(TINY["bitnet"], MULTIPLIES)
    source = write(tmp_path / "source", content, **{Q: with_code_3(content.codes[Q], 0, 0)})
    assert f"'{Q}' holds the code 3" in refused(source, tmp_path / "out")
