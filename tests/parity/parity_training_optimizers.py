"""AdamW and momentum against torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitnet_onnx.training.optimizers.gradient_norm import GradientNorm, clip_scale
from bitnet_onnx.training.optimizers.optimizer import make_optimizer
from bitnet_onnx.training.parameters import ParameterStore
from bitnet_onnx.training.settings import OptimizerName, OptimizerSettings

SHAPES = {"w": (60, 50), "norm": (50,)}


@pytest.mark.parametrize("name", [OptimizerName.ADAMW, OptimizerName.SGD])
@pytest.mark.parametrize("clip", [0.0, 5.0])
def test_steps_are_those_of_torch(name: OptimizerName, clip: float) -> None:
    settings = OptimizerSettings(name, weight_decay=0.05, betas=(0.9, 0.95), momentum=0.9, clip=clip)
    store = ParameterStore(SHAPES, decayed=frozenset({"w"}))
    random = np.random.default_rng(0)
    theirs = {}
    for key, shape in SHAPES.items():
        store.value(key)[...] = random.normal(size=shape)
        theirs[key] = torch.nn.Parameter(torch.from_numpy(store.value(key).copy()))
    groups = [{"params": [theirs["w"]], "weight_decay": 0.05}, {"params": [theirs["norm"]], "weight_decay": 0.0}]
    if name is OptimizerName.SGD:
        reference: torch.optim.Optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9)
    else:
        reference = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), eps=1e-8)
    mine = make_optimizer(settings, store)
    norm = GradientNorm(store.size)
    for step in range(50):
        rate = 0.01 * (1 + step % 3)
        for key, shape in SHAPES.items():
            gradient = random.normal(size=shape).astype(np.float32) * (step % 5)
            store.gradient(key)[...] = gradient
            theirs[key].grad = torch.from_numpy(gradient.copy())
        for group in reference.param_groups:
            group["lr"] = rate
        length = norm(store.gradients)
        if clip:
            found = torch.nn.utils.clip_grad_norm_(list(theirs.values()), clip)
            assert length == pytest.approx(float(found), rel=1e-6)
        reference.step()
        mine.step(rate, clip_scale(length, clip))
    for key, value in theirs.items():
        np.testing.assert_allclose(store.value(key), value.detach().numpy(), rtol=1e-5, atol=2e-6)
