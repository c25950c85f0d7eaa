"""Directories that training writes against transformers: it loads them, and computes what the package computes.

Run by `make parity`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from bitnet_reference import find_prompt, logits
from exports import write_source
from package_logits import PackageLogits
from tiny_models import TOLERANCE, prompts
from training_starts import LLAMA, random_start, trained_store
from transformers.integrations.bitnet import AutoBitLinear, WeightQuant

from bitnet_onnx.converters import Fallback, convert
from bitnet_onnx.policy import Policy, Precision, Weights
from bitnet_onnx.ternary import quantize_absmean
from bitnet_onnx.training.export import Stored, Trained, write_checkpoint
from bitnet_onnx.training.settings import BlockWeights, HeadWeights, ModelSettings
from bitnet_onnx.training.start import Start, open_start

torch.set_num_threads(1)  # the models are tiny

FLOAT = Precision(Weights.FLOAT32)
#: transformers leaves the projections of a narrower embedding alone, whose weights are ternary all the same.
POLICY = Policy(head=FLOAT, overrides=(("project_*", Precision(Weights.AUTO, activation_bits=0)),))
FLOAT_ACTIVATIONS = Policy(Precision(Weights.AUTO, activation_bits=0), FLOAT)
#: In units of the logits' deviation, on prompts where no activation lies on the border between two codes.
ROUNDING = 1e-4

#: Source, whether sub-norms are put in, and what transformers takes it for.
STARTS = [
    ("random", True, "BitNetForCausalLM"),
    ("random", False, "LlamaForCausalLM"),
    ("untied_gqa", True, "BitNetForCausalLM"),
    ("llama_longrope", True, "BitNetForCausalLM"),
    ("phi3", True, "BitNetForCausalLM"),
    ("bitnet", False, "BitNetForCausalLM"),
    ("tied_mha", False, "LlamaForCausalLM"),
    ("biased_mqa", False, "LlamaForCausalLM"),
    ("gemma2_caps", False, "Gemma2ForCausalLM"),
    ("qwen3", False, "Qwen3ForCausalLM"),
    ("opt_350m", False, "OPTForCausalLM"),
]


@pytest.fixture(autouse=True)
def _eager() -> Iterator[None]:
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def opened(name: str, sub_norms: bool, folder: Path) -> Iterator[Start]:
    if name == "random":
        yield random_start(dict(LLAMA) | {"vocab_size": 515, "initializer_range": 0.2}, sub_norms=sub_norms)
        return
    with open_start(ModelSettings(str(write_source(folder / "source", name)), sub_norms=sub_norms)) as start:
        yield start


def load(directory: Path) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def compare(what: str, model: transformers.PreTrainedModel, package: Path) -> None:
    run, rng = PackageLogits(package), np.random.default_rng(5)
    vocabulary = model.config.vocab_size
    for length in (1, 7, 40):
        ids = find_prompt(model, lambda n=length: rng.integers(0, vocabulary, n), stable=True)
        expected = logits(model, ids)
        found = float(np.abs(run(ids) - expected).max() / expected.std())
        sys.stdout.write(f"{what}, {length} tokens: |dlogit| {found:.1e}\n")
        assert found <= ROUNDING


@pytest.mark.parametrize("stored", [Stored.MASTERS, Stored.PACKED])
@pytest.mark.parametrize(("name", "sub_norms", "kind"), STARTS)
def test_ternary(name: str, sub_norms: bool, kind: str, stored: Stored, tmp_path: Path) -> None:
    with opened(name, sub_norms, tmp_path) as start:
        store = trained_store(start)
        write_checkpoint(tmp_path / "out", start, store.value, Trained(), stored=stored)
        convert(tmp_path / "out", tmp_path / "package", policy=POLICY, fallback=Fallback.EXACT)
        model = load(tmp_path / "out")
        assert type(model).__name__ == kind
        layers = [module for module in model.modules() if isinstance(module, AutoBitLinear)]
        assert len(layers) == sum(role.startswith("layers.") for role, _ in start.spec.matrices())
        assert all(layer.online_quant is (stored is Stored.MASTERS) for layer in layers)
        compare(f"{name}, {stored}", model, tmp_path / "package")
        if stored is Stored.MASTERS:
            blocks = (role for role, _ in start.spec.matrices() if role.startswith("layers."))
            ours = [np.abs(quantize_absmean(store.value(f"{role}.weight")).signed()).sum() for role in blocks]
            theirs = [(WeightQuant.apply(layer.weight) != 0).sum().item() for layer in layers]
            assert sorted(theirs) == sorted(ours)


@pytest.mark.parametrize("name", ["phi3", "gpt2", "gpt_neox", "untied_gqa"])
def test_values(name: str, tmp_path: Path) -> None:
    """Families whose layers transformers does not quantize: ternary weights, float activations."""
    with opened(name, False, tmp_path) as start:
        store = trained_store(start)
        write_checkpoint(tmp_path / "out", start, store.value, Trained(activation_bits=0))
    convert(tmp_path / "out", tmp_path / "package", policy=FLOAT_ACTIVATIONS, fallback=Fallback.EXACT)
    run, model = PackageLogits(tmp_path / "package"), load(tmp_path / "out")
    for ids in prompts(model.config.vocab_size, (1, 7, 60)):
        np.testing.assert_allclose(run(ids), logits(model, ids), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("name", "sub_norms", "kind"), STARTS)
def test_floats(name: str, sub_norms: bool, kind: str, tmp_path: Path) -> None:
    with opened(name, sub_norms, tmp_path) as start:
        store = trained_store(start)
        write_checkpoint(tmp_path / "out", start, store.value, Trained(BlockWeights.FLOAT, 0))
    convert(tmp_path / "out", tmp_path / "package", policy=Policy(FLOAT, FLOAT))
    run, model = PackageLogits(tmp_path / "package"), load(tmp_path / "out")
    assert type(model).__name__ == kind
    for ids in prompts(model.config.vocab_size, (1, 7, 60)):
        np.testing.assert_allclose(run(ids), logits(model, ids), rtol=0, atol=TOLERANCE)


def test_a_tokenizer_and_generation(tmp_path: Path) -> None:
    start = random_start(sub_norms=True)
    write_checkpoint(tmp_path / "out", start, start.read, Trained(head=HeadWeights.INT8))
    model = load(tmp_path / "out")
    assert (model.generation_config.bos_token_id, model.generation_config.eos_token_id) == (1, 2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer("In the beginning", return_tensors="pt")
    text = model.generate(**ids, max_new_tokens=4, do_sample=False)
    assert text.shape[1] <= ids["input_ids"].shape[1] + 4
