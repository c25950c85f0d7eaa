"""Losses of training graphs against the numpy reference, at every option of `DecoderSpec`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from random_decoders import BASE, FLOAT, SPECS, RandomDecoder
from training_graphs import NAMES, GraphRun, Inputs, cross_entropy, scalars, tokens

from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.evaluation._linear import PolicyRule
from bitnet_onnx.evaluation.reference import Prompt, forward
from bitnet_onnx.policy import Policy, Precision, Weights
from bitnet_onnx.training.graph.decoder import training_graph
from bitnet_onnx.training.graph.options import (
    INPUT_IDS,
    LABELS,
    LOSS,
    NORMALIZER,
    STRENGTH,
    GraphOptions,
    Term,
    loss_output,
)
from bitnet_onnx.training.graph.pruning import evaluation_graph
from bitnet_onnx.training.graph.stop_gradient import as_identity
from bitnet_onnx.training.settings import BlockWeights, HeadWeights

LENGTH = 20
TERNARY = Precision(Weights.TERNARY, 0, 8)
INT8_HEAD = Precision(Weights.INT8, 0, 8)


def reference(spec: DecoderSpec, data: Inputs, policy: Policy = FLOAT) -> np.ndarray:
    decoder = RandomDecoder(spec)
    prompts = [Prompt(tuple(int(token) for token in row)) for row in data[INPUT_IDS]]
    results = forward(spec, decoder, PolicyRule(decoder, policy), prompts)
    return np.stack([result.logits for result in results])


@pytest.mark.parametrize("name", NAMES)
def test_without_strength_it_is_the_decoder(name: str) -> None:
    spec = SPECS[name]
    data = tokens(spec, 2, LENGTH)
    losses = GraphRun(spec, GraphOptions(LENGTH + 3))(data | scalars(data))
    expected = cross_entropy(reference(spec, data), data[LABELS])
    found = losses[loss_output(Term.CROSS_ENTROPY)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_array_equal(losses[LOSS], found)


@pytest.mark.parametrize("head", HeadWeights)
@pytest.mark.parametrize("bits", [0, 8])
@pytest.mark.parametrize(
    "name",
    ["base", "tied", "biases", "sub-norms", "norms in linear layers", "projected embedding", "like gemma 2"],
)
def test_at_full_strength_it_is_the_package(name: str, bits: int, head: HeadWeights) -> None:
    """Also where a package has been rounded: the codes are those of a conversion."""
    spec = SPECS[name]
    data = tokens(spec, 2, LENGTH)
    of_head = replace(INT8_HEAD, activation_bits=bits) if head is HeadWeights.INT8 else FLOAT.head
    expected = reference(spec, data, Policy(replace(TERNARY, activation_bits=bits), of_head))
    options = GraphOptions(LENGTH, activation_bits=bits, head=head, terms=frozenset())
    logits = GraphRun(spec, options)(data | scalars(data, 1.0))["logits"]
    distance = np.abs(logits - expected).max(axis=(1, 2)) / expected.std()
    # A float that differs in the last place may become another integer, and all that follows with it.
    assert distance.min() < 1e-5
    assert distance.max() < (0.05 if bits else 1e-5)


def test_each_group_of_layers_has_its_strength() -> None:
    data = tokens(BASE, 2, LENGTH)
    options = GraphOptions(LENGTH, groups=(1, 0), activation_bits=0, head=HeadWeights.INT8, terms=frozenset())
    run = GraphRun(BASE, options)
    first, second = (("layers.0.*", FLOAT.default),), (("layers.1.*", FLOAT.default),)
    ternary = replace(TERNARY, activation_bits=0)
    # The head follows the last group.
    for strengths, policy in (
        ([1.0, 0.0], Policy(ternary, FLOAT.head, first)),
        ([0.0, 1.0], Policy(ternary, replace(INT8_HEAD, activation_bits=0), second)),
    ):
        logits = run(data | scalars(data, strengths))["logits"]
        np.testing.assert_allclose(logits, reference(BASE, data, policy), rtol=0, atol=1e-4)


def test_strength_sets_in_smoothly() -> None:
    """A little strength changes a little."""
    data = tokens(BASE, 1, LENGTH)
    run = GraphRun(BASE, GraphOptions(LENGTH, activation_bits=0, terms=frozenset()))
    near = {strength: run(data | scalars(data, strength))["logits"] for strength in (0.0, 1e-3, 1.0)}
    moved = np.abs(near[1e-3] - near[0.0]).max()
    assert 0 < moved < 0.01 * np.abs(near[1.0] - near[0.0]).max()


def test_weights_of_zero_and_tokens_of_zero_stay_finite() -> None:
    data = tokens(BASE, 1, 5)
    run = GraphRun(BASE, GraphOptions(8, head=HeadWeights.INT8))
    for role in run.parameters:
        run.parameters[role] = np.zeros_like(run.parameters[role])
    loss = run(data | scalars(data, 1.0))[LOSS]
    np.testing.assert_allclose(loss, np.log(BASE.vocab_size), rtol=1e-6)


def test_float_weights_are_not_rounded() -> None:
    data = tokens(BASE, 1, LENGTH)
    run = GraphRun(BASE, GraphOptions(LENGTH, weights=BlockWeights.FLOAT, terms=frozenset()))
    assert run.graph.inputs == (INPUT_IDS,)
    np.testing.assert_allclose(run(data)["logits"], reference(BASE, data), rtol=0, atol=1e-4)


def test_the_evaluation_graph_has_the_cross_entropy_alone() -> None:
    options = GraphOptions(LENGTH, terms=frozenset(Term), relation_layer=0, relation_heads=2)
    model = evaluation_graph(training_graph(BASE, options).model)
    data = tokens(BASE, 2, LENGTH)
    run = GraphRun(BASE, options, as_identity(model))
    inputs = {name: scalars(data)[name] for name in (NORMALIZER, STRENGTH)} | data
    name = loss_output(Term.CROSS_ENTROPY)
    np.testing.assert_allclose(run(inputs)[name], cross_entropy(reference(BASE, data), data[LABELS]), rtol=1e-6)
    assert {value.name for value in model.graph.inputs} == {*inputs, *run.parameters}
    with pytest.raises(ValueError, match=r"has no output loss\.cross_entropy"):
        evaluation_graph(training_graph(BASE, replace(options, terms=frozenset({Term.GRID}))).model)
