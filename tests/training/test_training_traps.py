"""Traps of training that no other module's tests would show: each is silent until a model is bad."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from training_starts import LLAMA, random_start, trained_store

from bitnet_onnx.training.export import Stored, Trained, write_checkpoint
from bitnet_onnx.training.optimizers.optimizer import make_optimizer
from bitnet_onnx.training.parameters import ParameterStore
from bitnet_onnx.training.settings import HeadWeights, OptimizerName, OptimizerSettings

#: A model with biases, beside one with sub-norms.
_GPT_NEOX = {name: value for name, value in LLAMA.items() if name != "num_key_value_heads"} | {
    "model_type": "gpt_neox",
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize("name", list(OptimizerName))
@pytest.mark.parametrize("fields", [LLAMA, _GPT_NEOX], ids=["sub-norms", "biases"])
def test_weight_decay_leaves_norms_and_biases_alone(name: OptimizerName, fields: dict[str, object]) -> None:
    start = random_start(fields, sub_norms=fields is LLAMA)
    shapes = dict(start.spec.tensors())
    store = ParameterStore(shapes, decayed=start.decayed)
    store.values.fill(1)
    store.gradients.fill(0)
    settings = OptimizerSettings(name, learning_rate=0.1, weight_decay=0.5)
    ternary = frozenset(role for role in shapes if role.endswith("_proj.weight"))
    optimizer = make_optimizer(settings, store, ternary=ternary, threads=1)
    try:
        optimizer.step(0.1, 1.0)
    finally:
        optimizer.close()
    matrices = {role for role, shape in shapes.items() if len(shape) == 2}
    assert len(matrices) < len(shapes)
    for role in shapes:
        assert np.all(store.value(role) == 1) == (role not in matrices), role


@pytest.mark.parametrize("stored", list(Stored))
@pytest.mark.parametrize("head", list(HeadWeights))
def test_what_is_written_shares_nothing_with_what_is_trained_on(
    stored: Stored, head: HeadWeights, tmp_path: Path
) -> None:
    start = random_start(sub_norms=True)
    store = trained_store(start)
    before = store.values.copy()
    write_checkpoint(tmp_path / "out", start, store.value, Trained(head=head), stored=stored)
    np.testing.assert_array_equal(store.values, before)
    written = (tmp_path / "out" / "model.safetensors").read_bytes()
    store.values += 1
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == written
