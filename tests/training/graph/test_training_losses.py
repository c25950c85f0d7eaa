"""Every term of the loss against numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from random_decoders import BASE, SPECS
from training_graphs import GraphRun, Inputs, cross_entropy, log_softmax, scalars, teacher, tokens

from bitnet_onnx.errors import InputError
from bitnet_onnx.evaluation._attention import rotate
from bitnet_onnx.evaluation._functions import normalize
from bitnet_onnx.ternary import quantize_absmean
from bitnet_onnx.training.graph.options import (
    INPUT_IDS,
    LABELS,
    LOSS,
    NORMALIZER,
    POSITIONS,
    RELATION_STATES,
    TEACHER_LOGITS,
    GraphOptions,
    Term,
    loss_output,
    teacher_state,
    weight_input,
)
from bitnet_onnx.training.settings import IGNORED, BlockWeights

BATCH, LENGTH, HEADS = 3, 11, 2
OPTIONS = GraphOptions(LENGTH, terms=frozenset(Term), temperature=2.5, relation_layer=1, relation_heads=HEADS)
WIDTHS = {"query": 40, "key": 24, "value": 24}


@pytest.fixture(scope="module")
def run() -> GraphRun:
    return GraphRun(BASE, OPTIONS)


@pytest.fixture(scope="module")
def plain() -> GraphRun:
    """The same decoder as a teacher."""
    return GraphRun(BASE, replace(OPTIONS, terms=frozenset()))


@pytest.fixture(scope="module")
def data() -> Inputs:
    batch = tokens(BASE, BATCH, LENGTH)
    return batch | scalars(batch, 0.7) | teacher(BASE, BATCH, LENGTH, WIDTHS)


def divergence(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """KL of the last axis."""
    first, second = log_softmax(expected), log_softmax(found)
    return (np.exp(first) * (first - second)).sum(axis=-1)


def relations(state: np.ndarray) -> np.ndarray:
    batch, length, width = state.shape
    parts = state.astype(np.float64).reshape(batch, length, HEADS, width // HEADS)
    scores = np.einsum("bqhd,bkhd->bhqk", parts, parts) / np.sqrt(width // HEADS)
    return np.where(np.tri(length, dtype=bool), scores, -1e30)


def test_all_terms(run: GraphRun, plain: GraphRun, data: Inputs) -> None:
    student, found = plain(data), run(data)
    counted = data[LABELS] != IGNORED
    kl = divergence(data[TEACHER_LOGITS] / 2.5, student["logits"] / 2.5)
    related = [divergence(relations(data[teacher_state(name)]), relations(student[name])) for name in RELATION_STATES]
    distances, count = 0.0, 0
    for role in (name for name in run.parameters if "_proj" in name):
        weight = run.parameters[role]
        step = float(quantize_absmean(weight).scale[0])
        distances += np.square(weight / step - quantize_absmean(weight).dequantize() / step, dtype=np.float64).sum()
        count += weight.size
    expected = {
        Term.CROSS_ENTROPY: cross_entropy(student["logits"], data[LABELS]),
        Term.DISTILLATION: 2.5**2 * kl[counted].mean(),
        Term.RELATION: np.mean([part.sum() for part in related]) / (HEADS * BATCH * LENGTH),
        Term.GRID: distances / count,
    }
    for term, value in expected.items():
        np.testing.assert_allclose(found[loss_output(term)], value, rtol=1e-5)
    total = sum(float(data[weight_input(term)]) * value for term, value in expected.items())
    np.testing.assert_allclose(found[LOSS], total, rtol=1e-5)


def test_micro_batches_add_up(run: GraphRun, data: Inputs) -> None:
    whole = run(data)
    parts = [
        run({name: value[rows] if value.ndim > 1 else value for name, value in data.items()})
        for rows in (slice(0, 1), slice(1, 3))
    ]
    for name, value in whole.items():
        np.testing.assert_allclose(sum(part[name] for part in parts), value, rtol=2e-6)


def test_ignored_tokens_and_counts(run: GraphRun, data: Inputs) -> None:
    unlabelled = run(data | {LABELS: np.full_like(data[LABELS], IGNORED)})
    whole = run(data)
    assert unlabelled[loss_output(Term.CROSS_ENTROPY)] == unlabelled[loss_output(Term.DISTILLATION)] == 0
    assert unlabelled[loss_output(Term.RELATION)] == whole[loss_output(Term.RELATION)] > 0
    # What the teacher thinks of tokens that are ignored does not matter.
    other = data[TEACHER_LOGITS].copy()
    other[data[LABELS] == IGNORED] *= -1
    assert run(data | {TEACHER_LOGITS: other})[LOSS] == whole[LOSS]
    halved = run(data | {name: np.array(2 * data[name], np.float32) for name in (NORMALIZER, POSITIONS)})
    for name, value in whole.items():
        np.testing.assert_allclose(2 * halved[name], value, rtol=1e-6)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(run: GraphRun, plain: GraphRun, data: Inputs) -> None:
    given = plain(data)
    same = {teacher_state(name): given[name] for name in RELATION_STATES} | {TEACHER_LOGITS: given["logits"]}
    found = run(data | same)
    assert abs(found[loss_output(Term.DISTILLATION)]) < 1e-5
    assert abs(found[loss_output(Term.RELATION)]) < 1e-6


def test_one_term_alone() -> None:
    batch = tokens(BASE, 1, 6)
    inputs = batch | scalars(batch) | teacher(BASE, 1, 6, WIDTHS)
    for term in Term:
        run = GraphRun(BASE, replace(OPTIONS, terms=frozenset({term})))
        found = run(inputs)
        assert sorted(found) == [LOSS, loss_output(term)]
        np.testing.assert_allclose(found[LOSS], found[loss_output(term)] * inputs[weight_input(term)], rtol=1e-6)
        takes = {NORMALIZER: term in {Term.CROSS_ENTROPY, Term.DISTILLATION}, TEACHER_LOGITS: term is Term.DISTILLATION}
        for name, taken in takes.items():
            assert (name in run.graph.inputs) == taken
        assert (POSITIONS in run.graph.inputs) != takes[NORMALIZER]


def test_relation_states_are_those_of_the_layer() -> None:
    """Queries and keys are rotated, and bear no scale of the scores."""
    spec = replace(SPECS["scales"], num_hidden_layers=1)  # attention_scale is 0.11
    run = GraphRun(spec, replace(OPTIONS, relation_layer=0, weights=BlockWeights.FLOAT, terms=frozenset()))
    found = run({INPUT_IDS: np.array([[3, 3, 3, 9]])})
    query, key = (found[name].reshape(4, -1, spec.head_dim) for name in ("query", "key"))
    assert (query.shape[1], key.shape[1]) == (4, 2)
    x = run.parameters["embed_tokens.weight"][[3, 3, 3, 9]] * np.float32(spec.embedding_scale)
    x = normalize(x, spec.norm, run.parameters["layers.0.input_norm.weight"], None, spec.norm_epsilon)
    for state, name in ((query, "q_proj"), (key, "k_proj")):
        flat = x @ run.parameters[f"layers.0.attn.{name}.weight"].T
        rotary = spec.layer(0).rotary
        assert rotary is not None
        expected = rotate(flat.reshape(4, -1, spec.head_dim), np.arange(4), rotary)
        np.testing.assert_allclose(state, expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found["value"][0, 0], found["value"][0, 2])


def test_relation_heads_that_do_not_divide_are_refused() -> None:
    grouped = replace(BASE, num_attention_heads=9, num_key_value_heads=3, head_dim=64)
    with pytest.raises(InputError, match="relation_heads is 9: it must divide the 192 features of the keys"):
        GraphRun(grouped, replace(OPTIONS, relation_heads=9))
