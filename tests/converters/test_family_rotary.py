"""Rotary embedding out of a configuration."""

from __future__ import annotations

import math

import pytest
from family_specs import rotary, spec

from bitnet_onnx.decoder import Rotary

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
TRANSFORMERS_LLAMA3 = [*(1.0,) * 15, 1.55341, 2.69453, 5.25733, *(8.0,) * 14]


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0}, "rope_theta": 1e4},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0}, "rope_scaling": {}},
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            "rope_scaling": {"type": "linear", "rope_theta": 5e5, "factor": 4.0},
        },
        {"rope_theta": 5e5, "rope_factors": [4.0] * 8},
    ],
)
def test_old_and_new_ways_to_write_rotary_scaling(changes: dict[str, object]) -> None:
    assert rotary(**changes) == Rotary(5e5, 16, (4.0,) * 8)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": {}},
        {"rope_parameters": {"rope_type": "default"}},
        {"rope_scaling": {"type": "default"}},
        {"partial_rotary_factor": 1.0},
    ],
)
def test_rope_parameters_without_scaling(changes: dict[str, object]) -> None:
    assert spec(**changes) == spec()


def llama3_divisor(index: int, dim: int, theta: float, rule: dict[str, float]) -> float:
    """The rule as the Llama 3.1 model card's code has it: three cases by wavelength."""
    frequency = theta ** (-2 * index / dim)
    wavelength = 2 * math.pi / frequency
    original = rule["original_max_position_embeddings"]
    if wavelength < original / rule["high_freq_factor"]:
        return 1.0
    if wavelength > original / rule["low_freq_factor"]:
        return rule["factor"]
    smooth = (original / wavelength - rule["low_freq_factor"]) / (rule["high_freq_factor"] - rule["low_freq_factor"])
    return frequency / ((1 - smooth) * frequency / rule["factor"] + smooth * frequency)


@pytest.mark.parametrize(
    ("theta", "head_dim", "rule"),
    [
        (5e5, 64, LLAMA3),
        (1e4, 16, LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 64}),
        (5e5, 128, LLAMA3 | {"low_freq_factor": 2.0, "high_freq_factor": 3.5}),
    ],
)
def test_llama3_divisors_equal_an_independent_formulation(theta: float, head_dim: int, rule: dict) -> None:
    divisors = rotary(rope_theta=theta, head_dim=head_dim, rope_scaling=rule).divisors
    expected = [llama3_divisor(index, head_dim, theta, rule) for index in range(head_dim // 2)]
    assert divisors == pytest.approx(expected, rel=1e-12)
    assert len({round(value, 6) for value in divisors}) > 2


def test_llama3_divisors_equal_those_of_transformers() -> None:
    """Numbers of transformers 5.23: theta 500000, 64 rotated features, Llama 3.1's factors."""
    divisors = rotary(rope_theta=5e5, head_dim=64, rope_scaling=LLAMA3).divisors
    assert divisors == pytest.approx(TRANSFORMERS_LLAMA3, abs=2e-5)


def test_dynamic_scaling_makes_room_beyond_the_context() -> None:
    found = spec(max_position_embeddings=100, rope_scaling={"type": "dynamic", "factor": 3.0})
    assert found.context_length == 300
    assert found.attention[0].rotary == Rotary(1e4, 16, dynamic_factor=3.0, original_context=100)


@pytest.mark.parametrize("factors", [{"mscale": 1.0, "mscale_all_dim": 0}, {"mscale": 0, "mscale_all_dim": 1.0}, {}])
def test_yarn_magnitude_with_a_zero_as_if_it_were_absent(factors: dict[str, float]) -> None:
    rule = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    assert rotary(rope_scaling=rule | factors).magnitude == pytest.approx(0.1 * math.log(4) + 1)


def test_longrope_takes_the_factors_of_the_context_it_is_made_for() -> None:
    rule = LONGROPE | {"original_max_position_embeddings": 256}
    short = spec(max_position_embeddings=1024, rope_scaling=rule)
    assert short.context_length == 256
    magnitude = math.sqrt(1 + math.log(4) / math.log(256))
    assert short.attention[0].rotary == Rotary(1e4, 16, (1.0,) * 8, magnitude)
    assert rotary(max_position_embeddings=1024, rope_scaling=rule, context_length=256).divisors == (1.0,) * 8
    long = rotary(max_position_embeddings=1024, rope_scaling=rule, context_length=257)
    assert long == Rotary(1e4, 16, (2.0,) * 8, magnitude)


@pytest.mark.parametrize("name", ["su", "yarn", "longrope"])
def test_phi3_has_three_names_for_longrope(name: str) -> None:
    """The training context stands at the top level there, and 4096 is what is meant where it does not."""
    rule = {"type": name, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    phi3 = {"model_type": "phi3", "max_position_embeddings": 8192, "rope_scaling": rule}
    magnitude = math.sqrt(1 + math.log(2) / math.log(4096))
    assert rotary(**phi3) == Rotary(1e4, 16, (1.0,) * 8, magnitude)
    assert rotary(**phi3, context_length=8192) == Rotary(1e4, 16, (2.0,) * 8, magnitude)
    assert spec(**phi3, original_max_position_embeddings=1024).context_length == 1024


def test_phi3_rotates_a_part_of_a_head() -> None:
    assert rotary(model_type="phi3", partial_rotary_factor=0.75).dim == 12
    assert rotary(model_type="phi3", rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5}).dim == 8
