"""Sources of every tiny family, and what it means that two of them hold the same model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from family_models import FAMILY_MODELS, shapes_of, write_family_checkpoint
from tiny_models import TINY, TinyModel, write_checkpoint

from bitnet_onnx.converters.model import SourceModel, open_model
from bitnet_onnx.policy import Policy, Precision, Weights
from bitnet_onnx.quantized import QuantizedTensor

SOURCES = [*TINY, *FAMILY_MODELS]
#: One model of each family, and those whose tensors lie in unusual ways: what `make test` has time for.
CHOSEN = list(
    dict.fromkeys(
        [
            *TINY,
            *{str(model.config["model_type"]): name for name, model in FAMILY_MODELS.items()}.values(),
            "gpt2_odd_heads",
            "gpt_neox_whole",
            "phi_norms_odd_heads",
        ]
    )
)
TERNARY = Policy(Precision(Weights.TERNARY), Precision(Weights.INT8, 0, 16))
FLOAT = Policy(Precision(Weights.FLOAT32), Precision(Weights.FLOAT32))
KEPT = Policy(Precision(Weights.KEEP), Precision(Weights.KEEP, 0, 16))
MERGES = [("a", "b"), ("ab", "c"), ("\u0120", "a")]


def wide(name: str) -> TinyModel:
    """A tiny model whose rows are whole blocks of 256."""
    model = TINY[name]
    return replace(
        model,
        config={**model.config, "hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "num_attention_heads": 4},
    )


def write_source(directory: Path, name: str) -> Path:
    """A checkpoint by its name, with a tokenizer that has merges."""
    if name in TINY:
        write_checkpoint(directory, TINY[name])
    else:
        write_family_checkpoint(directory, FAMILY_MODELS[name], shapes_of(name))
    return with_merges(directory)


def context_of(name: str) -> int | None:
    return None if name in TINY else FAMILY_MODELS[name].context


def with_merges(directory: Path) -> Path:
    """Give the tokenizer of a tiny checkpoint some merges, which a GGUF cannot do without."""
    document = json.loads((directory / "tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    for number, (left, right) in enumerate(MERGES):
        vocabulary[left + right] = vocabulary.pop(f"<unused{number}>")
        document["model"]["merges"].append([left, right])
    (directory / "tokenizer.json").write_text(json.dumps(document))
    return directory


def initializers(package: Path) -> Mapping[str, tuple[int, tuple[int, ...], bytes]]:
    """Every initializer of a package by name, with type, shape and bytes."""
    model = onnx.load(package / "model.onnx")
    return {
        tensor.name: (tensor.data_type, tuple(tensor.dims), onnx.numpy_helper.to_array(tensor).tobytes())
        for tensor in model.graph.initializer
    }


def codes(model: SourceModel) -> Iterator[tuple[str, QuantizedTensor | None]]:
    """The codes of each matrix of the blocks."""
    return ((role, model.tensors.quantized(role)) for role, _ in model.spec.matrices() if role.startswith("layers."))


def assert_same_codes(one: Path, other: Path, *, scale: float = 0.0) -> None:
    """Codes are equal, and scales up to a relative difference."""
    with open_model(one) as left, open_model(other) as right:
        for (role, expected), (_, found) in zip(codes(left), codes(right), strict=True):
            assert expected is not None, role
            assert found is not None, role
            assert found.grid == expected.grid, role
            np.testing.assert_array_equal(found.raw, expected.raw, role)
            np.testing.assert_allclose(found.scale, expected.scale, rtol=scale, atol=0, err_msg=role)


def flat(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """The fields of a specification one by one."""
    if is_dataclass(value):
        for field in fields(value):
            yield from flat(getattr(value, field.name), f"{name}.{field.name}".strip("."))
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from flat(item, f"{name}.{index}")
    else:
        yield name, value


def assert_same_values(one: Path, other: Path, *, rtol: float = 0.0, atol: float = 0.0, spec: bool = True) -> None:
    """Every tensor has the same values."""
    with open_model(one) as left, open_model(other) as right:
        if spec:
            ours, theirs = dict(flat(left.spec)), dict(flat(right.spec))
            assert theirs.keys() == ours.keys()
            for key, value in ours.items():
                # A GGUF has float32.
                close = isinstance(value, float) and theirs[key] == pytest.approx(value, rel=2e-7, abs=0)
                assert close or theirs[key] == value or key == "family", key
        for role, _ in left.spec.tensors():
            expected, found = left.tensors.read(role), right.tensors.read(role)
            np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol, err_msg=role)
