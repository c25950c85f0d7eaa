"""Tokens a second of a training step: ours, onnxruntime-training, and torch eager, side by side.

    python -P benchmarks/training/speed.py --out speed.json

A step is forward, backward, clipping and AdamW over the same Llama from the same start, on the same tokens; torch has
its fused AdamW and its fused attention. It needs torch, which `make parity` puts into its own environment; the engine
of onnxruntime-training is a candidate where its environment is there (`bitnet-onnx train --prepare`).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from bitnet_onnx.benchmarks import machine
from bitnet_onnx.benchmarks.results import OURS, Comparison
from bitnet_onnx.benchmarks.timing import interleave, timed
from bitnet_onnx.benchmarks.training._torch_llama import Recipe, TorchTrainer, random_values
from bitnet_onnx.decoder import Attention, DecoderSpec, Rotary
from bitnet_onnx.quantized import FloatArray
from bitnet_onnx.training.engines import environment
from bitnet_onnx.training.engines.choice import open_engine
from bitnet_onnx.training.graph.decoder import training_graph
from bitnet_onnx.training.graph.options import (
    INPUT_IDS,
    LABELS,
    LOSS,
    NORMALIZER,
    POSITIONS,
    STRENGTH,
    GraphOptions,
    Term,
    weight_input,
)
from bitnet_onnx.training.optimizers.gradient_norm import GradientNorm, clip_scale
from bitnet_onnx.training.optimizers.optimizer import make_optimizer
from bitnet_onnx.training.parameters import ParameterStore
from bitnet_onnx.training.settings import BlockWeights, EngineName, EngineSettings, OptimizerSettings

LENGTH = 256
_LLAMA = DecoderSpec(
    "llama", 4096, 256, 768, 6, 4, 2, 64, LENGTH, 1e-5, "silu", (Attention(Rotary(10000.0, 64)),),
    tie_word_embeddings=True,
)  # fmt: skip
MODELS = {
    "5.8M": _LLAMA,
    "27M": replace(
        _LLAMA, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4,
    ),
}  # fmt: skip


class Trainer:
    """Steps our engine and our optimizer."""

    def __init__(
        self,
        spec: DecoderSpec,
        values: Mapping[str, FloatArray],
        recipe: Recipe,
        threads: int,
        engine: EngineName,
        stack: ExitStack,
    ) -> None:
        weights = BlockWeights.TERNARY if recipe.ternary else BlockWeights.FLOAT
        graph = training_graph(spec, GraphOptions(LENGTH, weights, 8 if recipe.ternary else 0))
        decayed = frozenset(name for name, shape in graph.parameters.items() if len(shape) == 2)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path = folder / "parameters" if engine is EngineName.ONNXRUNTIME_TRAINING else None
        self._store = ParameterStore(graph.parameters, decayed=decayed, path=path)
        for name in graph.parameters:
            self._store.value(name)[...] = values[name]
        self._engine = open_engine(graph, self._store, EngineSettings(engine, threads))
        stack.callback(self._engine.close)
        settings = OptimizerSettings(weight_decay=recipe.weight_decay)
        self._optimizer = make_optimizer(settings, self._store, threads=threads)
        stack.callback(self._optimizer.close)
        self._norm = GradientNorm(self._store.size)
        self._inputs = graph.inputs
        self._recipe = recipe

    def step(self, input_ids: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]) -> float:
        """One step, and its loss."""
        count = np.float32(input_ids.size)
        given = {
            INPUT_IDS: input_ids,
            LABELS: labels,
            NORMALIZER: count,
            POSITIONS: count,
            STRENGTH: np.ones(1, np.float32),
            weight_input(Term.CROSS_ENTROPY): np.float32(1),
        }
        self._store.gradients[...] = 0
        losses = self._engine.accumulate({name: np.asarray(given[name]) for name in self._inputs})
        scale = clip_scale(self._norm(self._store.gradients), self._recipe.clip)
        self._optimizer.step(self._recipe.learning_rate, scale)
        return losses[LOSS]


def compare(spec: DecoderSpec, name: str, *, ternary: bool, threads: int, batch: int, rounds: int) -> Comparison:
    """All candidates on one model."""
    recipe, values = Recipe(ternary), random_values(spec, seed=0)
    generator = np.random.default_rng(1)
    ids = generator.integers(0, spec.vocab_size, (batch, LENGTH + 1))
    inputs, labels = np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])
    with ExitStack() as stack:
        ours = {OURS: EngineName.ONNXRUNTIME}
        if environment.available():
            ours["onnxruntime-training"] = EngineName.ONNXRUNTIME_TRAINING
        steppers = {one: Trainer(spec, values, recipe, threads, engine, stack).step for one, engine in ours.items()}
        steppers["torch eager"] = TorchTrainer(spec, values, recipe, threads).step
        first = {one: step(inputs, labels) for one, step in steppers.items()}
        if max(first.values()) - min(first.values()) > 0.01:
            raise RuntimeError(f"the candidates do not compute the same: {first}")
        candidates = {one: timed(partial(step, inputs, labels)) for one, step in steppers.items()}
        samples = interleave(candidates, rounds=rounds)
    kind = "ternary" if ternary else "float"
    return Comparison(f"{name} parameters, {kind}, {batch} x {LENGTH} tokens", threads, samples, tokens=batch * LENGTH)


@click.command()
@click.option("--model", "names", type=click.Choice(list(MODELS)), multiple=True, default=list(MODELS))
@click.option("--threads", "counts", type=int, multiple=True, default=(1, 2), show_default=True)
@click.option("--batch", default=8, show_default=True, help="Sequences of 256 tokens.")
@click.option("--rounds", default=7, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON file to write.")
def main(names: tuple[str, ...], counts: tuple[int, ...], batch: int, rounds: int, out: Path) -> None:
    """Measure all models, floats and ternary, and print the medians."""
    found = []
    for name in names:
        for ternary in (False, True):
            for threads in counts:
                one = compare(MODELS[name], name, ternary=ternary, threads=threads, batch=batch, rounds=rounds)
                found.append(one)
                rates = ", ".join(
                    f"{peer} {one.tokens / samples.median:,.0f} ({one.ratio(peer):.2f}x the time)"
                    for peer, samples in one.candidates.items()
                )
                click.echo(f"{one.case}, {threads} threads: tokens/s: {rates}")
    out.parent.mkdir(parents=True, exist_ok=True)
    facts = {"comparisons": [one.as_dict() for one in found], "machine": machine.describe()}
    out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
