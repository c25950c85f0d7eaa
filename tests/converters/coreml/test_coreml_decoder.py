"""Saved packages, run operation by operation, against the reference of a decoder: every option of its specification."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from coreml_packages import Saved, distance, needs_coremltools, play, write_coreml
from random_decoders import BASE, FLOAT, SPECS, RandomDecoder

from bitnet_onnx.converters.coreml.options import CoreMLOptions, TernaryStorage
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.evaluation._linear import PolicyRule
from bitnet_onnx.evaluation.mil.interpreter import Mode
from bitnet_onnx.evaluation.reference import Forward, Prompt, forward
from bitnet_onnx.policy import Policy, Precision, Weights

pytestmark = needs_coremltools

#: Between them every option of a specification, each where another way of emitting it would show.
OPTIONS = [
    "layer norms and tied head with bias",
    "norms: residual, rms",
    "norms: both, layer",
    "parallel with layer norms",
    "parallel_shared_norm, both",
    "query and key norms: head, layer",
    "query and key norms: all, rms",
    "gated relu2",
    "plain gelu",
    "plain quick_gelu",
    "learned positions with offset",
    "no positions",
    "rotary: partial, interleaved",
    "rotary: dynamic",
    "rotary: magnitude",
    "windows and rotations that alternate",
    "scales",
    "layer sub-norms",
    "norms in linear layers with biases",
    "projected embedding, tied, norms after the sum",
    "one key head",
    "like gemma 2",
]
#: In several calls of any length, and one token at a time.
CALLS = (("prefill", 15), ("prefill", 4), ("decode", 1), ("decode", 1), ("prefill", 2), ("decode", 1))
COUNT = sum(count for _, count in CALLS)


def _ids(spec: DecoderSpec) -> np.ndarray:
    return np.random.default_rng(5).integers(0, spec.vocab_size, COUNT).astype(np.int32)


def _calls(ids: np.ndarray) -> list[tuple[str, np.ndarray]]:
    ends = np.cumsum([count for _, count in CALLS])
    return [(name, ids[end - count : end]) for (name, count), end in zip(CALLS, ends, strict=True)]


def _reference(spec: DecoderSpec, policy: Policy, ids: np.ndarray) -> Forward:
    tensors = RandomDecoder(spec)
    prompt = Prompt(tuple(int(token) for token in ids))
    (found,) = forward(spec, tensors, PolicyRule(tensors, policy), [prompt], layers=range(spec.num_hidden_layers))
    return found


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(tmp_path: Path, name: str) -> None:
    spec = replace(SPECS[name], context_length=32)
    ids = _ids(spec)
    expected = _reference(spec, FLOAT, ids)
    package, _ = write_coreml(tmp_path, spec, FLOAT, CoreMLOptions(split=True))
    found = play(package, spec, _calls(ids))
    for index, layer in enumerate(found.layers):
        # Matrices, keys and values are float16 here, and float32 there.
        assert distance(layer, expected.hidden[index]) < 2e-3
    assert distance(found.logits, expected.logits) < 5e-3


@pytest.mark.parametrize(
    "policy",
    [
        Policy(Precision(Weights.TERNARY)),
        Policy(),
        Policy(Precision(Weights.INT6, 0), Precision(Weights.INT4, 0)),
        Policy(Precision(Weights.INT8, 64, activation_bits=16), Precision(Weights.FLOAT32)),
    ],
    ids=["ternary", "int4", "int6", "int8"],
)
def test_every_precision(tmp_path: Path, policy: Policy) -> None:
    spec = replace(SPECS["sub-norms"], context_length=32, tie_word_embeddings=True)
    ids = _ids(spec)
    expected = _reference(spec, policy, ids)
    package, _ = write_coreml(tmp_path, spec, policy, CoreMLOptions(split=True))
    found = play(package, spec, _calls(ids))
    # A scale that is rounded moves an activation to the next integer here and there.
    assert distance(found.logits, expected.logits) < 2e-2
    half = play(package, spec, _calls(ids), Mode.FLOAT16)
    assert half.findings == []
    assert distance(half.logits, expected.logits) < 3e-2


def test_both_ways_to_store_ternary_matrices_are_one_model(tmp_path: Path) -> None:
    spec, policy = replace(BASE, context_length=32), Policy(Precision(Weights.TERNARY))
    calls = [("main", _ids(spec))]
    lut, _ = write_coreml(tmp_path / "lut", spec, policy)
    sparse, _ = write_coreml(tmp_path / "sparse", spec, policy, CoreMLOptions(ternary=TernaryStorage.SPARSE))
    assert np.array_equal(play(lut, spec, calls).logits, play(sparse, spec, calls).logits)
    assert len(Saved.read(sparse).weights) < len(Saved.read(lut).weights)


class _Extreme(RandomDecoder):
    """Activations far beyond what a float16 holds: in the stream, in a norm's sum, in the square of relu."""

    def read(self, role: str) -> np.ndarray:
        values = super().read(role)
        if role == "embed_tokens.weight":
            values[:, 3] *= 3e4
        if role.endswith(("gate_proj.weight", "up_proj.weight")):
            values *= np.float32(300)
        return values


@pytest.mark.parametrize("policy", [FLOAT, Policy(Precision(Weights.INT8, 0))], ids=["float", "int8"])
def test_extreme_activations_overflow_nowhere(tmp_path: Path, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random_decoders.RandomDecoder", _Extreme)
    spec = replace(BASE, activation="relu2", context_length=32)
    ids, tensors = _ids(spec), _Extreme(spec)
    (expected,) = forward(
        spec, tensors, PolicyRule(tensors, policy), [Prompt(tuple(int(token) for token in ids))], layers=(0, 1)
    )
    # What is squared and multiplied in the MLP: three matrices' outputs, each some hundreds.
    assert np.abs(expected.hidden[1]).max() > 1e6
    package, _ = write_coreml(tmp_path, spec, policy)
    half = play(package, spec, [("main", ids)], Mode.FLOAT16)
    assert half.findings == []
    assert np.isfinite(half.logits).all()
    assert distance(half.logits, expected.logits) < 5e-2
