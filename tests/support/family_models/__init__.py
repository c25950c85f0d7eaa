"""Tiny random decoders of every family: each module of this folder lists those of one family as `MODELS`.

The golden file of a model (`tests/golden/families/NAME.npz`) holds the tensors that transformers wants of it, by name
and shape, and the logits that it computes; `make parity` writes it. The weights themselves follow from the names.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tiny_models import tokenizer

from family_models._model import FamilyModel

GOLDEN = Path(__file__).parents[2] / "golden" / "families"

FAMILY_MODELS: dict[str, FamilyModel] = {
    name: model
    for module in sorted(info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_"))
    for name, model in importlib.import_module(f"{__name__}.{module}").MODELS.items()
}

__all__ = ["FAMILY_MODELS", "GOLDEN", "FamilyModel", "shapes_of", "write_family_checkpoint"]


def shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    """The tensors of a model by name, out of its golden file."""
    with np.load(GOLDEN / f"{name}.npz") as golden:
        return {key: tuple(shape) for key, shape in json.loads(str(golden["shapes"])).items()}


def values(model: FamilyModel, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Weights of a size that keeps activations near one, so that logits differ by several units."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    data = random.standard_normal(shape).astype(np.float32)
    if name.endswith(".bias"):
        return data * np.float32(0.1)
    if len(shape) == 1:
        return np.float32(0.0 if model.norms_add_one else 1.0) + np.float32(0.2) * data
    if any(part in name for part in model.embeddings):
        return data * np.float32(model.embedding_size)
    inputs = shape[0] if any(part in name for part in model.transposed) else shape[1]
    return data / np.float32(np.sqrt(inputs))


def write_family_checkpoint(
    directory: Path, model: FamilyModel, shapes: Mapping[str, tuple[int, ...]], **changes: object
) -> Path:
    """A complete Hugging Face directory; `changes` replace fields of config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: values(model, name, shape) for name, shape in shapes.items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps({**model.config, **changes}))
    tokenizer(int(str(model.config["vocab_size"]))).save(str(directory / "tokenizer.json"))
    return directory
