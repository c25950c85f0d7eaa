"""`quantization_config`, and the modules that it keeps dense."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_onnx.converters._config import Config
from bitnet_onnx.converters._module_patterns import MAX_CHARACTERS, MAX_REPEATING, ModulePatterns
from bitnet_onnx.converters.ternary_scheme import TernaryScheme, ternary_scheme
from bitnet_onnx.errors import CheckpointError, InputError, UnsupportedError


def scheme(**fields: object) -> TernaryScheme:
    found = ternary_scheme(Config({"quantization_config": {"quant_method": "bitnet", **fields}}))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("fields", "online", "divides"),
    [
        ({}, False, True),
        ({"quantization_mode": "online"}, False, True),
        ({"linear_class": "bitlinear", "bits": 2}, False, True),
        ({"linear_class": "autobitlinear"}, False, False),
        ({"linear_class": "autobitlinear", "quantization_mode": "offline"}, False, False),
        ({"linear_class": "autobitlinear", "quantization_mode": "online"}, True, False),
    ],
)
def test_what_is_stored(fields: dict[str, object], online: bool, divides: bool) -> None:
    found = scheme(**fields)
    assert (found.online, found.divides) == (online, divides)
    assert found.linear_norm_epsilon is None


def test_norms_inside_linear_layers() -> None:
    assert scheme(use_rms_norm=True).linear_norm_epsilon == 1e-6
    assert scheme(use_rms_norm=True, rms_norm_eps=1e-5).linear_norm_epsilon == 1e-5
    assert scheme(use_rms_norm=False, rms_norm_eps=1e-5).linear_norm_epsilon is None


def test_no_scheme_and_a_word_without_one() -> None:
    assert ternary_scheme(Config({})) is None
    assert ternary_scheme(Config({"is_bitnet_config": True})) is None


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"quant_method": "gptq"}, UnsupportedError, "quantization method 'gptq'"),
        ({"quant_method": None}, UnsupportedError, "quantization method 'unknown'"),
        ({"linear_class": "bitlinear2"}, UnsupportedError, "linear_class 'bitlinear2'"),
        ({"linear_class": 3}, CheckpointError, "linear_class is 3: expected a string"),
        ({"quantization_mode": "later"}, CheckpointError, "quantization_mode is 'later': expected offline or online"),
        ({"rms_norm_eps": 0, "use_rms_norm": True}, CheckpointError, "rms_norm_eps is 0"),
        ({"use_rms_norm": "yes"}, CheckpointError, "use_rms_norm is 'yes'"),
        ({"group_size": 64}, UnsupportedError, "field 'group_size' is not known"),
        ({"x" * 10000: 1}, UnsupportedError, "field 'xxx"),
        ({"modules_to_not_convert": "lm_head"}, CheckpointError, "expected a list of strings"),
        ({"modules_to_not_convert": [1]}, CheckpointError, "expected a list of strings"),
        (
            {"linear_class": "autobitlinear", "quantization_mode": "online", "modules_to_not_convert": []},
            UnsupportedError,
            "does not name lm_head",
        ),
    ],
)
def test_refusals_name_the_field(fields: dict[str, object], error: type[InputError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        scheme(**fields)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_null_keeps_the_head_and_an_empty_list_nothing() -> None:
    for fields in ({}, {"modules_to_not_convert": None}):
        assert not scheme(**fields).covers("lm_head")
        assert scheme(**fields).covers("model.layers.0.mlp.up_proj")
    assert scheme(modules_to_not_convert=[]).covers("lm_head")
    assert scheme(modules_to_not_convert=["model.layers.1"]).covers("lm_head")


@pytest.mark.parametrize(
    ("entry", "kept", "covered"),
    [
        ("model.layers.1", ["model.layers.1.mlp.up_proj"], ["model.layers.11.mlp.up_proj", "x.model.layers.1.up_proj"]),
        ("mlp.gate", ["model.mlp.gate"], ["model.layers.0.mlp.gate_proj"]),
        ("q_proj", ["model.layers.0.self_attn.q_proj"], ["q_projection", "model.q_proj.x"]),
        ("model.layers.*.mlp", ["model.layers.3.mlp.up_proj"], ["model.layers.3.mlps"]),
        (r"model\.layers\.[0-9]+\.mlp", ["model.layers.33.mlp.up_proj"], ["model.layers.x.mlp"]),
        (r"^model\.layers\.(0)", [], []),
        ("", ["anything"], []),
    ],
)
def test_entries(entry: str, kept: list[str], covered: list[str]) -> None:
    if "(" in entry:
        with pytest.raises(UnsupportedError, match="is a regular expression that is not read"):
            scheme(modules_to_not_convert=[entry])
        return
    found = scheme(modules_to_not_convert=[entry])
    assert not any(found.covers(name) for name in kept)
    assert all(found.covers(name) for name in covered)


ATOMS = st.sampled_from(["a", "b", "1", ".", ".", "*", "+", "?", r"\.", r"\d", "[0-9]", ".*", "|", "^", "$"])


@given(
    entry=st.lists(ATOMS, max_size=7).map("".join),
    names=st.lists(st.text(st.sampled_from("aab1..\u0663"), max_size=9), min_size=20, max_size=20),
)
def test_what_is_read_means_what_the_regular_expression_means(entry: str, names: list[str]) -> None:
    try:
        patterns = ModulePatterns([entry], "list")
    except UnsupportedError:
        return
    boundary = r"(?:(?<=\.)|(?=\.|$))"
    for name in names:
        expected = re.match(rf"(?:{entry}){boundary}", name) is not None or name.endswith(entry)
        assert patterns.match(name) is expected, (entry, name)


@pytest.mark.parametrize(
    "entry",
    ["(a+)+b", "(?:x|y)", "a{1,5}", "[a-z]", r"\w", "*", "a**", "a*+", "(", "[", "\\", "a^b", "a$b", "(?P<n>a)\\1"],
)
def test_other_regular_expressions_are_refused_by_name(entry: str) -> None:
    with pytest.raises(UnsupportedError, match="is a regular expression that is not read") as caught:
        ModulePatterns([entry], "list")
    assert repr(entry) in str(caught.value)


def test_hostile_lists_take_no_time() -> None:
    began = time.process_time()
    with pytest.raises(UnsupportedError, match=f"the limit is {MAX_CHARACTERS}"):
        ModulePatterns(["x"] * (MAX_CHARACTERS // 2 + 1), "list")
    with pytest.raises(UnsupportedError, match=f"the limit is {MAX_REPEATING}"):
        ModulePatterns([".*x"] * (MAX_REPEATING // 3 + 1), "list")
    # A backtracking engine takes 2^90 steps for the first and 100^20 for the second.
    slow = ModulePatterns(["a*" * 90 + "b", ".*a" * 20 + "c"], "list")
    for length in (100, 400):
        assert not slow.match("a" * length)
    assert time.process_time() - began < 5
