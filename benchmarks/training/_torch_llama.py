"""The peer: a Llama trained in torch, eagerly, with the same recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.quantized import FloatArray


@dataclass(frozen=True, slots=True)
class Recipe:
    """What both sides do in a step.

    Attributes:
        ternary: BitNet's weights and activations, or floats.
        learning_rate: of AdamW.
        weight_decay: of matrices.
        clip: greatest norm of the gradients.
    """

    ternary: bool
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    clip: float = 1.0


class TorchTrainer:
    """Steps a plain Llama.

    Args:
        spec: RMSNorm, rotary attention with grouped heads, SwiGLU, a tied head.
        values: its weights by role.
        recipe: of a step.
        threads: of torch.
    """

    def __init__(self, spec: DecoderSpec, values: Mapping[str, FloatArray], recipe: Recipe, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model = _Llama(spec, values, recipe.ternary)
        decayed = [parameter for parameter in self._model.parameters() if parameter.ndim == 2]
        others = [parameter for parameter in self._model.parameters() if parameter.ndim != 2]
        groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
        # The fastest of torch's own implementations.
        self._optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)
        self._clip = recipe.clip

    def step(self, input_ids: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]) -> float:
        """One step, and its loss."""
        self._optimizer.zero_grad()
        logits = self._model(torch.from_numpy(input_ids))
        loss = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(labels).flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), self._clip)
        self._optimizer.step()
        return float(loss)


class _Llama(nn.Module):
    def __init__(self, spec: DecoderSpec, values: Mapping[str, FloatArray], ternary: bool) -> None:
        super().__init__()
        self.spec, self.ternary = spec, ternary
        self.weights = nn.ParameterDict(
            {name.replace(".", "/"): nn.Parameter(torch.from_numpy(value.copy())) for name, value in values.items()}
        )
        rotary = spec.layer(0).rotary
        if rotary is None:
            raise RuntimeError("the peer is a Llama: it rotates")
        angles = torch.arange(spec.context_length)[:, None] * rotary.theta ** -(
            torch.arange(0, spec.head_dim, 2) / spec.head_dim
        )
        self.register_buffer("cosine", torch.cat([angles.cos(), angles.cos()], -1))
        self.register_buffer("sine", torch.cat([angles.sin(), angles.sin()], -1))

    def forward(self, ids: Tensor) -> Tensor:
        spec = self.spec
        x = F.embedding(ids, self._weight("embed_tokens"))
        for index in range(spec.num_hidden_layers):
            layer = f"layers.{index}"
            x = x + self._attention(f"{layer}.attn", self._norm(f"{layer}.input_norm", x))
            x = x + self._mlp(f"{layer}.mlp", self._norm(f"{layer}.post_attention_norm", x))
        return self._norm("norm", x) @ self._weight("embed_tokens").T

    def _attention(self, role: str, x: Tensor) -> Tensor:
        spec = self.spec
        batch, length, _ = x.shape
        x = self._activations(x)
        query, key, value = (
            self._linear(f"{role}.{name}", x).view(batch, length, -1, spec.head_dim).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        query, key = self._rotate(query), self._rotate(key)
        y = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return self._linear(f"{role}.o_proj", self._activations(y.transpose(1, 2).reshape(batch, length, -1)))

    def _mlp(self, role: str, x: Tensor) -> Tensor:
        x = self._activations(x)
        inner = F.silu(self._linear(f"{role}.gate_proj", x)) * self._linear(f"{role}.up_proj", x)
        return self._linear(f"{role}.down_proj", self._activations(inner))

    def _rotate(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        length = x.shape[-2]
        return x * self.cosine[:length] + torch.cat([-second, first], -1) * self.sine[:length]

    def _norm(self, role: str, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self._weight(role), self.spec.norm_epsilon)

    def _linear(self, role: str, x: Tensor) -> Tensor:
        weight = self._weight(role)
        if self.ternary:
            mean = weight.detach().abs().mean().clamp_min(1e-5)
            weight = weight + ((weight / mean).round().clamp(-1, 1) * mean - weight).detach()
        return F.linear(x, weight)

    def _activations(self, x: Tensor) -> Tensor:
        if not self.ternary:
            return x
        scale = 127 / x.detach().abs().amax(-1, keepdim=True).clamp_min(1e-5)
        return x + ((x * scale).round().clamp(-128, 127) / scale - x).detach()

    def _weight(self, role: str) -> Tensor:
        return self.weights[f"{role}.weight".replace(".", "/")]


def random_values(spec: DecoderSpec, seed: int) -> dict[str, FloatArray]:
    """A random start for both sides."""
    generator = np.random.default_rng(seed)
    return {
        role: np.ones(shape, np.float32)
        if len(shape) == 1
        else (generator.standard_normal(shape, np.float32) * np.float32(0.02))
        for role, shape in spec.tensors()
    }
