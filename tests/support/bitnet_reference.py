"""BitNet in transformers, in float32, and prompts on which its own rounding decides nothing. Needs torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers.integrations.bitnet import AutoBitLinear, BitLinear

#: Relative noise after every linear layer and norm: a few units in the last place of float32.
NOISE = 4e-7
#: A prompt is stable where the noise moves no logit by more.
STABLE = 2e-4
TRIALS = 8


def load(directory: Path) -> transformers.PreTrainedModel:
    """The model as it is stored, computing in float32."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()
    # `PreTrainedModel.float` refuses quantized models.
    torch.nn.Module.float(model)
    for module in model.modules():
        if isinstance(module, BitLinear):
            module.dtype = torch.float32
    return model


def bit_layers(model: torch.nn.Module) -> dict[str, BitLinear | AutoBitLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, BitLinear | AutoBitLinear)}


def logits(model: torch.nn.Module, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = model(torch.from_numpy(ids)[None]).logits[0].numpy()
    return found


@contextmanager
def noise(model: torch.nn.Module, seed: int) -> Iterator[None]:
    """Every linear layer and norm off by a relative `NOISE`."""
    random = torch.Generator().manual_seed(seed)

    def disturb(_: torch.nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
        return output * (1 + NOISE * torch.randn(output.shape, generator=random))

    hooks = [
        module.register_forward_hook(disturb)
        for module in model.modules()
        if isinstance(module, BitLinear | torch.nn.Linear) or type(module).__name__.endswith("RMSNorm")
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def own_noise(model: torch.nn.Module, ids: np.ndarray, *, limit: float = np.inf) -> float:
    """The most that noise moves a logit of this prompt; above `limit` it is not looked further."""
    calm, largest = logits(model, ids), 0.0
    for seed in range(TRIALS):
        with noise(model, seed):
            largest = max(largest, float(np.abs(logits(model, ids) - calm).max()))
        if largest > limit:
            break
    return largest


def find_prompt(model: torch.nn.Module, draw: Callable[[], np.ndarray], *, stable: bool) -> np.ndarray:
    """The first drawn prompt that is stable, or the first that is not."""
    for _ in range(100):
        ids = draw()
        if (own_noise(model, ids, limit=STABLE) <= STABLE) is stable:
            return ids
    raise AssertionError(f"none of 100 prompts is {'stable' if stable else 'unstable'}")
