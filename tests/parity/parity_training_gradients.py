"""Losses and gradients of the training graph against torch's own differentiation of the same formulas."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from bitnet_onnx.decoder import Attention, DecoderSpec, Rotary
from bitnet_onnx.quantized import FloatArray
from bitnet_onnx.training.engines.current import CurrentEngine
from bitnet_onnx.training.graph.decoder import training_graph
from bitnet_onnx.training.graph.options import (
    INPUT_IDS,
    LABELS,
    NORMALIZER,
    POSITIONS,
    RELATION_STATES,
    STRENGTH,
    TEACHER_LOGITS,
    GraphOptions,
    Term,
    loss_output,
    teacher_state,
    weight_input,
)
from bitnet_onnx.training.parameters import ParameterStore
from bitnet_onnx.training.settings import IGNORED, EngineSettings, HeadWeights

BATCH, LENGTH = 2, 12
SPEC = DecoderSpec(
    "bitnet", 64, 32, 48, 2, 4, 2, 8, 16, 1e-5, "silu", (Attention(Rotary(10000.0, 8)),),
    attention_sub_norm=True, mlp_sub_norm=True, tie_word_embeddings=False,
)  # fmt: skip
TEMPERATURE, LAYER, HEADS = 2.0, 1, 4
WEIGHTS = {Term.CROSS_ENTROPY: 0.7, Term.DISTILLATION: 0.4, Term.RELATION: 0.3, Term.GRID: 0.2}


@pytest.fixture(scope="module")
def values() -> dict[str, FloatArray]:
    generator = np.random.default_rng(7)
    return {
        role: (1 + 0.1 * generator.standard_normal(shape, np.float32)).astype(np.float32)
        if len(shape) == 1
        else generator.standard_normal(shape, np.float32) * np.float32(0.2)
        for role, shape in SPEC.tensors()
    }


@pytest.fixture(scope="module")
def inputs() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(8)
    labels = generator.integers(0, SPEC.vocab_size, (BATCH, LENGTH))
    labels[0, :3] = IGNORED
    width = {"query": SPEC.attention_size, "key": SPEC.key_value_size, "value": SPEC.key_value_size}
    return {
        INPUT_IDS: generator.integers(0, SPEC.vocab_size, (BATCH, LENGTH)),
        LABELS: labels,
        NORMALIZER: np.float32((labels != IGNORED).sum()),
        POSITIONS: np.float32(BATCH * LENGTH),
        TEACHER_LOGITS: generator.standard_normal((BATCH, LENGTH, SPEC.vocab_size), np.float32),
        **{
            teacher_state(name): generator.standard_normal((BATCH, LENGTH, width[name]), np.float32)
            for name in RELATION_STATES
        },
        **{weight_input(term): np.float32(weight) for term, weight in WEIGHTS.items()},
    }


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("head", list(HeadWeights))
def test_losses_and_gradients(
    values: Mapping[str, FloatArray], inputs: Mapping[str, np.ndarray], strength: float, head: HeadWeights
) -> None:
    options = GraphOptions(
        LENGTH, head=head, terms=frozenset(Term), temperature=TEMPERATURE, relation_layer=LAYER, relation_heads=HEADS
    )
    graph = training_graph(SPEC, options)
    store = ParameterStore(graph.parameters)
    for name in graph.parameters:
        store.value(name)[...] = values[name]
    engine = CurrentEngine(graph, store, EngineSettings(threads=1))
    ours = engine.accumulate({**inputs, STRENGTH: np.array([strength], np.float32)})

    model = _Torch(values, strength, head)
    terms = model.losses(inputs)
    total = sum(weight * terms[term] for term, weight in WEIGHTS.items())
    total.backward()
    for term in Term:
        assert ours[loss_output(term)] == pytest.approx(terms[term].item(), rel=2e-5), term
    for name, parameter in model.weights.items():
        expected = np.zeros(parameter.shape) if parameter.grad is None else parameter.grad.numpy()
        limit = 2e-4 * max(np.abs(expected).max(), 1e-3)
        np.testing.assert_allclose(store.gradient(name), expected, atol=limit, err_msg=name)


class _Torch:
    def __init__(self, values: Mapping[str, FloatArray], strength: float, head: HeadWeights) -> None:
        self.weights = {
            name: torch.from_numpy(value.copy()).double().requires_grad_() for name, value in values.items()
        }
        self.strength, self.head = strength, head

    def losses(self, inputs: Mapping[str, np.ndarray]) -> dict[Term, Tensor]:
        logits, states = self._forward(torch.from_numpy(inputs[INPUT_IDS]))
        labels = torch.from_numpy(inputs[LABELS]).flatten()
        learned = labels != IGNORED
        normalizer, positions = float(inputs[NORMALIZER]), float(inputs[POSITIONS])
        student = F.log_softmax(logits.flatten(0, 1) / TEMPERATURE, -1)[learned]
        teacher = F.log_softmax(torch.from_numpy(inputs[TEACHER_LOGITS]).double().flatten(0, 1) / TEMPERATURE, -1)
        relation = sum(
            F.kl_div(
                _relations(states[name]),
                _relations(torch.from_numpy(inputs[teacher_state(name)]).double()),
                log_target=True,
                reduction="none",
            )
            .nan_to_num()
            .sum()
            for name in RELATION_STATES
        )
        blocks = [name for name in self.weights if name.startswith("layers.") and name.endswith("_proj.weight")]
        return {
            Term.CROSS_ENTROPY: F.cross_entropy(logits.flatten(0, 1), labels, ignore_index=IGNORED, reduction="sum")
            / normalizer,
            Term.DISTILLATION: TEMPERATURE**2
            * F.kl_div(student, teacher[learned], log_target=True, reduction="sum")
            / normalizer,
            Term.RELATION: relation / (HEADS * 3) / positions,
            Term.GRID: self._grid(blocks),
        }

    def _grid(self, blocks: list[str]) -> Tensor:
        total, count = torch.zeros((), dtype=torch.float64), 0
        for name in blocks:
            weight = self.weights[name]
            step = weight.detach().abs().mean().clamp_min(1e-5)
            codes = (weight.detach() / step).round().clamp(-1, 1)
            total, count = total + ((weight / step - codes) ** 2).sum(), count + weight.numel()
        return total / count

    def _forward(self, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        states: dict[str, Tensor] = {}
        x = F.embedding(ids, self._rows("embed_tokens.weight"))
        for index in range(SPEC.num_hidden_layers):
            role = f"layers.{index}"
            x = x + self._attention(index, self._norm(f"{role}.input_norm", x), states)
            inner = self._rounded(self._norm(f"{role}.post_attention_norm", x))
            inner = F.silu(self._linear(f"{role}.mlp.gate_proj", inner)) * self._linear(f"{role}.mlp.up_proj", inner)
            x = x + self._linear(f"{role}.mlp.down_proj", self._rounded(self._norm(f"{role}.mlp.sub_norm", inner)))
        x = self._norm("norm", x)
        x = self._rounded(x) if self.head is HeadWeights.INT8 else x
        return x @ self._rows("lm_head.weight").T, states

    def _attention(self, index: int, x: Tensor, states: dict[str, Tensor]) -> Tensor:
        role, x = f"layers.{index}.attn", self._rounded(x)
        query, key, value = (
            self._linear(f"{role}.{name}", x).view(BATCH, LENGTH, -1, SPEC.head_dim).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        query, key = _rotate(query), _rotate(key)
        if index == LAYER:
            for name, state in zip(RELATION_STATES, (query, key, value), strict=True):
                states[name] = state.transpose(1, 2).reshape(BATCH, LENGTH, -1)
        y = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        y = self._norm(f"{role}.sub_norm", y.transpose(1, 2).reshape(BATCH, LENGTH, -1))
        return self._linear(f"{role}.o_proj", self._rounded(y))

    def _norm(self, role: str, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weights[f"{role}.weight"], SPEC.norm_epsilon)

    def _linear(self, role: str, x: Tensor) -> Tensor:
        weight = self.weights[f"{role}.weight"]
        step = weight.detach().abs().mean().clamp_min(1e-5)
        return F.linear(x, self._toward(weight, (weight.detach() / step).round().clamp(-1, 1) * step))

    def _rows(self, name: str) -> Tensor:
        """Rows of which the weight of largest magnitude is -128 steps."""
        weight = self.weights[name]
        if self.head is HeadWeights.FLOAT:
            return weight
        fixed = weight.detach()
        end = fixed.gather(-1, fixed.abs().argmax(-1, keepdim=True))
        step = end / -128
        return self._toward(weight, (fixed / step).round().clamp(-128, 127) * step)

    def _rounded(self, x: Tensor) -> Tensor:
        fixed = x.detach()
        scale = 127 / fixed.abs().amax(-1, keepdim=True).clamp_min(1e-5)
        return self._toward(x, (fixed * scale).round().clamp(-128, 127) / scale)

    def _toward(self, x: Tensor, nearest: Tensor) -> Tensor:
        return x + (self.strength * (nearest - x)).detach()


def _rotate(x: Tensor) -> Tensor:
    angles = torch.arange(LENGTH)[:, None] * 10000.0 ** -(torch.arange(0, SPEC.head_dim, 2) / SPEC.head_dim)
    first, second = x.chunk(2, -1)
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)


def _relations(x: Tensor) -> Tensor:
    batch, length, width = x.shape
    cut = x.reshape(batch, length, HEADS, width // HEADS).transpose(1, 2)
    scores = cut @ cut.transpose(-1, -2) / math.sqrt(width // HEADS)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return F.log_softmax(scores.masked_fill(~causal, -math.inf), -1)
