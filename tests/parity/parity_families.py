"""Families against torch: golden files hold what transformers computes for a tiny model of each.

Run by `make parity`. `BITNET_ONNX_WRITE_GOLDEN=1` writes the golden files anew instead of comparing with them.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from family_models import FAMILY_MODELS, GOLDEN, FamilyModel, write_family_checkpoint
from safetensors import safe_open
from tiny_models import TOLERANCE, columns, prompts


def stored_shapes(model: FamilyModel, directory: Path) -> dict[str, tuple[int, ...]]:
    """What transformers writes for a model of this configuration."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(model.config))
    config = transformers.AutoConfig.from_pretrained(directory)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(directory)
    with safe_open(directory / "model.safetensors", "np") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def reference_logits(loaded: transformers.PreTrainedModel, ids: np.ndarray, one_by_one: bool) -> np.ndarray:
    tokens = torch.from_numpy(ids)[None]
    with torch.no_grad():
        if not one_by_one:
            return loaded(tokens).logits[0].float().numpy()
        past, parts = None, []
        for position in range(len(ids)):
            output = loaded(tokens[:, position : position + 1], past_key_values=past, use_cache=True)
            past = output.past_key_values
            parts.append(output.logits[0].float().numpy())
        return np.concatenate(parts)


@pytest.mark.parametrize("name", FAMILY_MODELS)
def test_golden(name: str, tmp_path: Path) -> None:
    model = FAMILY_MODELS[name]
    shapes = stored_shapes(model, tmp_path / "shapes")
    source = write_family_checkpoint(tmp_path / name, model, shapes)
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()), info
    loaded.eval()
    vocabulary = loaded.config.vocab_size
    logits = [reference_logits(loaded, ids, model.one_by_one) for ids in prompts(vocabulary, model.prompt_lengths)]
    fresh = {f"prompt{index}": part[:, columns(vocabulary)] for index, part in enumerate(logits)}
    path = GOLDEN / f"{name}.npz"
    if os.environ.get("BITNET_ONNX_WRITE_GOLDEN") == "1":
        path.parent.mkdir(exist_ok=True)
        np.savez_compressed(path, shapes=np.array(json.dumps(shapes)), **fresh)
    sys.stdout.write(f"{name}: logits deviate by {np.std(logits[-1]):.2f}\n")
    with np.load(path) as golden:
        assert json.loads(str(golden["shapes"])) == {key: list(shape) for key, shape in shapes.items()}
        for key, expected in fresh.items():
            np.testing.assert_allclose(golden[key], expected, rtol=0, atol=TOLERANCE / 10)
