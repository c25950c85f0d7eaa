"""Decoders in stock and standard operators against the numpy reference: prompts, caches, rows of other lengths."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator
from package_logits import PackageLogits
from random_decoders import BASE, FLOAT, SPECS, RandomDecoder, write

from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.evaluation._linear import PolicyRule
from bitnet_onnx.evaluation.reference import Prompt, forward
from bitnet_onnx.metrics import relative_error
from bitnet_onnx.package_format import MODEL, Operators
from bitnet_onnx.policy import Policy, Precision, Weights

OTHERS = (Operators.STOCK, Operators.STANDARD)
TOLERANCE = 1e-4
#: Where activations are rounded to int8 in blocks.
ROUNDED = 0.03
IDS = tuple(int(token) for token in np.random.default_rng(5).integers(0, BASE.vocab_size, 40))

#: What attention, norms, positions and the MLP can be; `test_emitter_against_reference` has all of it in our own form.
DECODERS = [
    "base",
    "one key head",
    "biases",
    "layer norms and tied head with bias",
    "norms: both, rms",
    "norms: residual, layer",
    "parallel, one layer norm",
    "query and key norms: head, rms",
    "query and key norms: all, rms",
    "gated relu",
    "gated quick_gelu",
    "gated gelu_tanh",
    "plain relu2",
    "learned positions with offset",
    "no positions",
    "rotary: interleaved",
    "rotary: dynamic",
    "rotary: partial, interleaved",
    "windows and rotations that alternate",
    "scales and norms behind",
    "sub-norms",
    "norms in linear layers with biases",
    "projected embedding, tied, norms after the sum",
    "like gemma 2",
    "like gpt-neox",
    "20 of 80 features rotated",
    "rotated apart, in one layer",
]
#: Float activations, so that nothing is rounded twice: the weights of each precision, and of the head.
PRECISIONS = {
    "ternary": (Precision(Weights.TERNARY, 0, 0), Precision(Weights.INT8, 0, 0)),
    "int2 in groups": (Precision(Weights.INT2, 32, 0), Precision(Weights.INT4, 32, 0)),
    "int4": (Precision(Weights.INT4, 32, 0), Precision(Weights.INT6, 32, 0)),
    "int4 in groups of 96": (Precision(Weights.INT4, 96, 0), Precision(Weights.FLOAT32)),
    "int6": (Precision(Weights.INT6, 0, 0), Precision(Weights.INT4, 0, 0)),
    "int8 in groups": (Precision(Weights.INT8, 64, 0), Precision(Weights.INT8, 32, 0)),
}


def policy(name: str, activation_bits: int = 0) -> Policy:
    body, head = PRECISIONS[name]
    if activation_bits and head.weights is not Weights.FLOAT32:
        head = replace(head, activation_bits=16)
    mixed = ("layers.1.mlp.gate_proj", Precision(Weights.FLOAT32))
    return Policy(replace(body, activation_bits=activation_bits), head, (mixed,))


def reference(spec: DecoderSpec, *prompts: tuple[int, ...], policy: Policy = FLOAT) -> list[np.ndarray]:
    tensors = RandomDecoder(spec)
    results = forward(spec, tensors, PolicyRule(tensors, policy), [Prompt(ids) for ids in prompts])
    return [result.logits for result in results]


def check_domains(package: Path, operators: Operators) -> None:
    model = onnx.load(package / MODEL, load_external_data=False)
    assert not model.functions
    domains = {"", "com.microsoft"} if operators is Operators.STOCK else {""}
    assert {node.domain for node in model.graph.node} <= domains
    assert {opset.domain for opset in model.opset_import} == domains
    if operators is Operators.STANDARD:
        onnx.checker.check_model(str(package / MODEL), full_check=True)


class Unoptimized(PackageLogits):
    """ONNX Runtime executes the nodes as they are."""

    def __init__(self, package: Path) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.session = ort.InferenceSession(package / MODEL, options, providers=["CPUExecutionProvider"])


class Evaluated(PackageLogits):
    """The reference evaluator of onnx."""

    def __init__(self, package: Path) -> None:
        evaluator = ReferenceEvaluator(onnx.load(package / MODEL))
        shapes = ort.InferenceSession(package / MODEL, providers=["CPUExecutionProvider"]).get_inputs()
        self.session = type("Session", (), {"run": evaluator.run, "get_inputs": lambda _: shapes})()


@pytest.mark.parametrize("operators", OTHERS)
@pytest.mark.parametrize("name", DECODERS)
def test_a_package_of_floats_computes_the_decoder(name: str, operators: Operators, tmp_path: Path) -> None:
    spec = SPECS[name]
    (expected,) = reference(spec, IDS)
    assert expected.std() > 0.1
    package = write(tmp_path, spec, operators=operators)
    check_domains(package, operators)
    run = PackageLogits(package)
    for chunk in (None, 1, 9):
        np.testing.assert_allclose(run(np.array(IDS), chunk), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("operators", OTHERS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", PRECISIONS)
def test_every_precision_computes_the_decoder(name: str, tied: bool, operators: Operators, tmp_path: Path) -> None:
    """With float activations to float rounding; ONNX Runtime rounds them in blocks where it is let."""
    spec = replace(SPECS["biases"], tie_word_embeddings=tied, embedding_scale=1.5)
    (exact,) = reference(spec, IDS, policy=policy(name))
    floats = write(tmp_path / "floats", spec, policy(name), operators=operators)
    check_domains(floats, operators)
    run = Unoptimized(floats) if operators is Operators.STANDARD else PackageLogits(floats)
    for chunk in (None, 9):
        np.testing.assert_allclose(run(np.array(IDS), chunk), exact, rtol=0, atol=TOLERANCE)
    (expected,) = reference(spec, IDS, policy=policy(name, 8))
    rounded = PackageLogits(write(tmp_path / "rounded", spec, policy(name, 8), operators=operators))
    for chunk in (None, 9):
        assert 1e-5 < relative_error(expected, rounded(np.array(IDS), chunk)) < ROUNDED


@pytest.mark.parametrize("operators", OTHERS)
@pytest.mark.parametrize(
    "name", ["base", "windows and rotations that alternate", "learned positions with offset", "rotary: dynamic"]
)
def test_rows_of_different_lengths_do_not_touch_each_other(name: str, operators: Operators, tmp_path: Path) -> None:
    spec, lengths = SPECS[name], (14, 5, 31)
    prompts = [IDS[start : start + length] for start, length in enumerate(lengths)]
    found = PackageLogits(write(tmp_path, spec, operators=operators)).ragged([np.array(prompt) for prompt in prompts])
    for logits, expected in zip(found, reference(spec, *prompts), strict=True):
        np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["ternary", "int4", "int6"])
@pytest.mark.parametrize("decoder", ["base", "like gemma 2", "sub-norms"])
def test_the_reference_evaluator_agrees(decoder: str, name: str, tmp_path: Path) -> None:
    """Prompt and cache, and a batch with rows of different lengths."""
    spec = SPECS[decoder]
    package = write(tmp_path, spec, policy(name, 8), operators=Operators.STANDARD)
    run, ids = Evaluated(package), IDS[:11]
    (expected,) = reference(spec, ids, policy=policy(name))
    for chunk in (None, 4):
        np.testing.assert_allclose(run(np.array(ids), chunk), expected, rtol=0, atol=TOLERANCE)
    prompts = [ids[:7], ids[4:8]]
    for logits, want in zip(
        run.ragged([np.array(prompt) for prompt in prompts]),
        reference(spec, *prompts, policy=policy(name)),
        strict=True,
    ):
        np.testing.assert_allclose(logits, want, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("operators", OTHERS)
def test_a_cache_may_be_longer_than_its_tokens_and_shared_with_the_present(
    operators: Operators, tmp_path: Path
) -> None:
    """As our runtime and onnxruntime-genai bind it: one buffer, in place, whatever stands behind the tokens."""
    spec = SPECS["windows and rotations that alternate"]
    session = PackageLogits(write(tmp_path, spec, operators=operators)).session
    (expected,) = reference(spec, IDS)
    buffers = {
        value.name: ort.OrtValue.ortvalue_from_numpy(np.full((1, value.shape[1], 64, value.shape[3]), 7, np.float32))
        for value in session.get_inputs()
        if value.name.startswith("past")
    }
    binding = session.io_binding()
    for name, buffer in buffers.items():
        binding.bind_ortvalue_input(name, buffer)
        binding.bind_ortvalue_output(name.replace("past_key_values", "present"), buffer)
    for start, stop in ((0, 20), (20, 21), (21, 40)):
        binding.bind_cpu_input("input_ids", np.array([IDS[start:stop]], np.int64))
        binding.bind_cpu_input("attention_mask", np.ones((1, stop), np.int64))
        binding.bind_output("logits")
        session.run_with_iobinding(binding)
        (logits,) = [value.numpy() for value in binding.get_outputs() if value.shape()[-1] == spec.vocab_size]
        np.testing.assert_allclose(logits[0], expected[start:stop], rtol=0, atol=TOLERANCE)
