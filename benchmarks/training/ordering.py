"""The ordering that quantization-aware training promises, at laptop scale: one command, some hours on two cores.

    python -P benchmarks/training/texts.py TEXTS
    python -P benchmarks/training/ordering.py TEXTS RUNS --out ordering.json --plot ordering.svg

For each seed a Llama of 3.2 million parameters is trained on the King James Bible, Shakespeare and the Jargon File, but
for the last tenth of each, which is what all figures are of:

1. `base`: floats, from a random start; what all others go on from;
2. `float`: floats, the second half of the steps;
3. `qat`: ternary weights and int8 activations for the same steps on the same data, the strength of quantization rising;
4. `distilled`: the same with BitNet's norms, learning from `float` as well;
5. `untrained`: `float` converted to ternary without training, by every method that there is.

Each becomes a package (blocks as trained, the head float32), and `evaluate` scores all of them on the same windows.
A second call goes on where the first stopped. Two cores are busiest with `--jobs 2 --threads 1`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev

import click

import bitnet_onnx
from bitnet_onnx.api import calibrate
from bitnet_onnx.benchmarks import machine
from bitnet_onnx.benchmarks.training import _ordering_plot
from bitnet_onnx.calibration import CollectOptions, open_statistics
from bitnet_onnx.evaluation.quality import QualityOptions, WindowRule
from bitnet_onnx.policy import Policy, Precision, Weights
from bitnet_onnx.quantization.method import MethodName
from bitnet_onnx.training import read_config, train
from bitnet_onnx.training.data import holdout_start

TEXTS = ("kjv.txt", "shakespeare.txt", "jargon.txt")
HELD_OUT = 0.1
LENGTH = 256

_ARCHITECTURE = """
[model.architecture]
model_type = "llama"
vocab_size = 4096
hidden_size = 192
intermediate_size = 512
num_hidden_layers = 6
num_attention_heads = 6
num_key_value_heads = 3
max_position_embeddings = 512
rms_norm_eps = 1e-5
rope_theta = 10000.0
hidden_act = "silu"
tie_word_embeddings = true
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """One experiment.

    Attributes:
        texts: folder with `TEXTS`.
        runs: folder of all runs.
        steps: of each half.
        batch: sequences a step.
        rate: learning rate at its highest, in both halves.
        threads: of a run; 0 is all cores.
    """

    texts: Path
    runs: Path
    steps: int
    batch: int
    rate: float
    threads: int


def train_all(plan: Plan, seed: int) -> dict[str, Path]:
    """The packages of all trained models of a seed."""
    folder = plan.runs / f"seed-{seed}"
    base = _train(plan, folder / "base", seed, _base(plan))
    floats = _train(plan, folder / "float", seed + 100, _second(plan, base, 'weights = "float"\nactivation_bits = 0'))
    qat = _train(plan, folder / "qat", seed + 100, _second(plan, base, _RISING))
    distilled = _train(
        plan, folder / "distilled", seed + 100, _second(plan, base, f"sub_norms = true\n{_RISING}", _losses(floats))
    )
    return {"float": floats, "qat": qat, "distilled": distilled}


def _base(plan: Plan) -> str:
    schedule = f"learning_rate = {plan.rate}\nwarmup = {plan.steps // 20}\ncurve = 'cosine'\nminimum = 0.3"
    return f'[model]\nweights = "float"\nactivation_bits = 0\n{_ARCHITECTURE}\n[optimizer]\n{schedule}\n{_OPTIMIZER}'


_OPTIMIZER = "weight_decay = 0.1\n"
_RISING = ""


def _second(plan: Plan, base: Path, model: str, losses: str = "") -> str:
    schedule = (
        f"learning_rate = {plan.rate}\nwarmup = {plan.steps // 20}\ncurve = 'cosine'\nminimum = 0.02\n{_OPTIMIZER}"
    )
    strength = f"[quantization]\nstrength = {{ start = 0.0, end = 1.0, steps = {plan.steps // 5}, curve = 'linear' }}\n"
    quantization = "" if "float" in model else strength
    return f'[model]\nsource = "{base}"\n{model}\n[optimizer]\n{schedule}{quantization}{losses}'


def _losses(teacher: Path) -> str:
    return f'[losses]\ncross_entropy = 0.3\ndistillation = 0.7\ntemperature = 1.0\nteacher = "{teacher}"\n'


def _train(plan: Plan, output: Path, seed: int, text: str) -> Path:
    """The checkpoint of one run, trained unless it is there."""
    made = output / "model"
    if not (made / "config.json").exists():
        files = ", ".join(f'"{plan.texts.resolve() / name}"' for name in TEXTS)
        head = f'output = "{output.resolve()}"\nseed = {seed}\n'
        data = f"[data]\ntrain = [{files}]\nholdout = {HELD_OUT}\nlength = {LENGTH}\n"
        loop = (
            f"[loop]\nsteps = {plan.steps}\nbatch = {plan.batch}\nevaluate_every = {plan.steps // 10}\n"
            f"checkpoint_every = {plan.steps // 4}\nmeasure_every = {plan.steps // 10}\n"
            f"[engine]\nthreads = {plan.threads}\n"
        )
        output.parent.mkdir(parents=True, exist_ok=True)
        config = output.with_suffix(".toml")
        config.write_text(head + text + data + loop, encoding="utf-8")
        train(read_config(config))
    return made.resolve()


def untrained(plan: Plan, checkpoint: Path, folder: Path) -> dict[str, Path]:
    """Packages of `checkpoint` made ternary without training."""
    statistics = folder / "statistics.safetensors"
    if not statistics.exists():
        files = [plan.texts / name for name in TEXTS]
        fitted = [
            _part(text, folder / f"fitted-{text.name}", slice(0, holdout_start(text, HELD_OUT))) for text in files
        ]
        calibrate(checkpoint, fitted, statistics, CollectOptions(tokens=16384, window=LENGTH))
    floats = Precision(Weights.FLOAT32)
    made = {}
    for name, precision in (
        ("absmean", Precision(Weights.TERNARY, method=MethodName.ABSMEAN)),
        ("least squares, group 64", Precision(Weights.TERNARY, 64, method=MethodName.LEAST_SQUARES)),
        ("GPTQ, group 64", Precision(Weights.TERNARY, 64, method=MethodName.GPTQ)),
    ):
        path = folder / name.replace(", ", "-").replace(" ", "-")
        if not path.exists():
            calibration = open_statistics(statistics) if precision.method is MethodName.GPTQ else None
            bitnet_onnx.convert(checkpoint, path, policy=Policy(precision, floats), calibration=calibration)
        made[name] = path
    return made


def packages(plan: Plan, seed: int) -> dict[str, Path]:
    """Everything that is scored, by name."""
    folder = plan.runs / f"seed-{seed}"
    trained = train_all(plan, seed)
    made = {}
    for name, checkpoint in trained.items():
        path = folder / f"{name}-package"
        if not path.exists():
            weights = "float32" if name == "float" else "ternary"
            bitnet_onnx.convert(checkpoint, path, weights=weights, head="float32")
        made[name] = path
    made |= {f"untrained: {name}": path for name, path in untrained(plan, trained["float"], folder).items()}
    return made


def score(plan: Plan, package: Path, tokens: int) -> float:
    """Perplexity on the held-out tenth of all texts."""
    held = [held_out(plan.texts / name, plan.runs) for name in TEXTS]
    options = QualityOptions(rule=WindowRule(size=LENGTH, tokens=tokens))
    total = bitnet_onnx.evaluate(package, texts=held, options=options).total
    if total is None:
        raise RuntimeError("texts have a perplexity")
    return total.perplexity


def held_out(text: Path, folder: Path) -> Path:
    """A file with what training keeps for validation of a text."""
    return _part(text, folder / f"held-{text.name}", slice(holdout_start(text, HELD_OUT), None))


def _part(text: Path, path: Path, part: slice) -> Path:
    if not path.exists():
        path.write_bytes(text.read_bytes()[part])
    return path


def summary(scores: Mapping[str, Mapping[str, float]]) -> dict[str, object]:
    """Means and deviations over seeds, whether the order holds for each, and the share of the gap that is closed."""
    names = next(iter(scores.values()))
    best = {
        seed: min(value for name, value in one.items() if name.startswith("untrained")) for seed, one in scores.items()
    }
    closed = {seed: (best[seed] - one["distilled"]) / (best[seed] - one["float"]) for seed, one in scores.items()}
    return {
        "perplexity": {
            name: {"mean": mean(values), "deviation": stdev(values) if len(values) > 1 else 0.0}
            for name, values in ((name, [one[name] for one in scores.values()]) for name in names)
        },
        "ordered": {seed: one["float"] < one["distilled"] < one["qat"] < best[seed] for seed, one in scores.items()},
        "gap_closed": closed,
    }


@click.command()
@click.argument("texts", type=click.Path(path_type=Path, exists=True))
@click.argument("runs", type=click.Path(path_type=Path))
@click.option("--seeds", default=3, show_default=True)
@click.option("--steps", default=2000, show_default=True, help="Of each half.")
@click.option("--batch", default=8, show_default=True, help="Sequences of 256 tokens a step.")
@click.option("--rate", default=3e-3, show_default=True, help="Learning rate.")
@click.option("--threads", default=0, show_default=True, help="Of a run; 0 is all cores.")
@click.option("--jobs", default=1, show_default=True, help="Seeds that are trained at once.")
@click.option("--tokens", default=32768, show_default=True, help="Of each text that are scored.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON file to write.")
@click.option("--plot", type=click.Path(path_type=Path), help="PNG, SVG or PDF to draw.")
def main(
    texts: Path,
    runs: Path,
    seeds: int,
    steps: int,
    batch: int,
    rate: float,
    threads: int,
    jobs: int,
    tokens: int,
    out: Path,
    plot: Path | None,
) -> None:
    """Train and score all models."""
    plan = Plan(texts, runs, steps, batch, rate, threads)
    runs.mkdir(parents=True, exist_ok=True)
    scores: dict[str, dict[str, float]] = {}
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        list(pool.map(train_all, repeat(plan, seeds), range(seeds)))
    for seed in range(seeds):
        made = packages(plan, seed)
        scores[str(seed)] = {name: score(plan, package, tokens) for name, package in made.items()}
        for name, value in scores[str(seed)].items():
            click.echo(f"seed {seed}: {name}: {value:.2f}")
        facts = {
            "steps": steps,
            "batch": batch,
            "rate": rate,
            "tokens": tokens,
            "scores": scores,
            **summary(scores),
            "machine": machine.describe(),
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    if plot is not None:
        _ordering_plot.draw(runs, steps, scores, plot)


if __name__ == "__main__":
    main()
