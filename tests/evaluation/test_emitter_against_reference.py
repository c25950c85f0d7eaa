"""The emitted graph in ONNX Runtime against the numpy reference, at every option of `DecoderSpec`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from package_logits import PackageLogits
from random_decoders import BASE, FLOAT, SPECS, RandomDecoder, write

from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.evaluation._linear import PolicyRule
from bitnet_onnx.evaluation.reference import Prompt, forward
from bitnet_onnx.policy import Policy, Precision, Weights

TOLERANCE = 1e-4
IDS = tuple(int(token) for token in np.random.default_rng(5).integers(0, BASE.vocab_size, 40))
INT8_HEAD = Precision(Weights.INT8, 0, 16)


def reference(spec: DecoderSpec, *prompts: tuple[int, ...], policy: Policy = FLOAT) -> list[np.ndarray]:
    tensors = RandomDecoder(spec)
    results = forward(spec, tensors, PolicyRule(tensors, policy), [Prompt(ids) for ids in prompts])
    return [result.logits for result in results]


@pytest.mark.parametrize("name", SPECS)
def test_a_package_of_floats_computes_the_decoder(name: str, tmp_path: Path, operator_library: Path) -> None:
    spec = SPECS[name]
    (expected,) = reference(spec, IDS)
    assert expected.std() > 0.1
    package = write(tmp_path, spec)
    for library in (None, operator_library):
        run = PackageLogits(package, library)
        for chunk in (None, 1, 9):
            np.testing.assert_allclose(run(np.array(IDS), chunk), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("library", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "base",
        "windows and rotations that alternate",
        "learned positions with offset",
        "rotary: dynamic",
        "query and key norms: head, rms",
        "like gpt-neox",
        "20 of 80 features rotated",
        "rotated apart, in one layer",
    ],
)
def test_rows_of_different_lengths_do_not_touch_each_other(
    name: str, library: bool, tmp_path: Path, operator_library: Path
) -> None:
    """Padding stands behind the tokens; then a token for each row."""
    spec, lengths = SPECS[name], (13, 4, 30)
    prompts = [IDS[start : start + length + 1] for start, length in enumerate(lengths)]
    expected = reference(spec, *prompts)
    session = PackageLogits(write(tmp_path, spec), operator_library if library else None).session
    longest = max(lengths)
    ids, mask = np.zeros((2, len(lengths), longest), np.int64)
    for row, length in enumerate(lengths):
        ids[row, :length], mask[row, :length] = prompts[row][:length], 1
    past = {
        value.name: np.zeros((len(lengths), value.shape[1], 0, value.shape[3]), np.float32)
        for value in session.get_inputs()
        if value.name.startswith("past")
    }
    logits, *present = session.run(None, {"input_ids": ids, "attention_mask": mask, **past})
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(logits[row, :length], expected[row][:length], rtol=0, atol=TOLERANCE)
    last = np.array([[prompt[-1]] for prompt in prompts], np.int64)
    mask = (np.arange(longest + 1) <= np.array(lengths)[:, None]).astype(np.int64)
    logits, *_ = session.run(None, {"input_ids": last, "attention_mask": mask, **dict(zip(past, present, strict=True))})
    for row in range(len(lengths)):
        np.testing.assert_allclose(logits[row, 0], expected[row][-1], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("weights", "tolerance"),
    [
        (Precision(Weights.INT4, 32, 0), TOLERANCE),
        (Precision(Weights.INT8, 0, 0), TOLERANCE),
        (Precision(Weights.TERNARY, 0, 0), TOLERANCE),
        # A float that differs in the last place may become another integer.
        (Precision(Weights.INT4, 32, 16), 1e-3),
        (Precision(Weights.INT6, 64, 16), 1e-3),
        (Precision(Weights.INT4, 32, 8), 0.05),
        (Precision(Weights.TERNARY, 0, 8), 0.05),
    ],
    ids=lambda value: f"{value.weights}-a{value.activation_bits}" if isinstance(value, Precision) else "",
)
@pytest.mark.parametrize("name", ["base", "biases", "layer norms", "norms in linear layers with biases", "tied"])
def test_quantized_packages_compute_what_their_codes_say(
    name: str, weights: Precision, tolerance: float, tmp_path: Path, operator_library: Path
) -> None:
    spec, policy = SPECS[name], Policy(weights, replace(INT8_HEAD, activation_bits=weights.activation_bits))
    (expected,) = reference(spec, IDS, policy=policy)
    package = write(tmp_path, spec, policy)
    scale = expected.std()
    for library in (None, operator_library):
        logits = PackageLogits(package, library)(np.array(IDS))
        np.testing.assert_allclose(logits / scale, expected / scale, rtol=0, atol=tolerance)


def test_the_context_may_be_used_up(tmp_path: Path) -> None:
    """The last row of every table."""
    spec = SPECS["learned positions and rotary"]
    ids = tuple(int(token) for token in np.random.default_rng(1).integers(0, spec.vocab_size, spec.context_length))
    (expected,) = reference(spec, ids)
    run = PackageLogits(write(tmp_path, spec))
    for chunk in (None, 57):
        np.testing.assert_allclose(run(np.array(ids), chunk), expected, rtol=0, atol=TOLERANCE)
