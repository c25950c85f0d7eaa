"""Rules for ternary weights against AdamW, each at its best learning rate: one command, some minutes a seed.

    python -P benchmarks/training/texts.py TEXTS
    python -P benchmarks/training/optimizers.py TEXTS/kjv.txt RUNS --out optimizers.json

A Llama of 0.4 million parameters is trained on a text but for the last tenth, which the perplexity is of, with ternary
weights and int8 activations: once from a random start, and once on from floats, the strength of quantization rising
over the first fifth. On the first seed every rule tries every rate; at its best one it takes the other seeds. For one
seed all rules have the same start, and the same data in the same order. A second call goes on where the first stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Final

import click

from bitnet_onnx.benchmarks import machine
from bitnet_onnx.errors import TrainingError
from bitnet_onnx.training import read_config, train

STARTS = ("floats", "random")
RULES = ("adamw", "ternary_muon")
PARAMETERS = 393_888
_ARCHITECTURE: Final = """
[model.architecture]
model_type = "llama"
vocab_size = 1024
hidden_size = 96
intermediate_size = 256
num_hidden_layers = 3
num_attention_heads = 3
num_key_value_heads = 1
max_position_embeddings = 128
rms_norm_eps = 1e-5
rope_theta = 10000.0
hidden_act = "silu"
tie_word_embeddings = true
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """One experiment.

    Attributes:
        text: that is trained on, and evaluated on.
        runs: folder of all runs.
        steps: of a run.
        batch: sequences a step.
        length: tokens of a sequence.
        threads: of a run; 0 is all cores.
    """

    text: Path
    runs: Path
    steps: int
    batch: int
    length: int
    threads: int


@dataclass(frozen=True, slots=True)
class Scores:
    """Perplexities of one rule from one kind of start.

    Attributes:
        rates: by learning rate, of the first seed.
        rate: the best.
        perplexities: of all seeds at the best rate.
    """

    rates: dict[str, float]
    rate: float
    perplexities: list[float]


def scored(plan: Plan, start: str, rule: str, rates: Iterable[float], seeds: int) -> Scores:
    """Train with a rule at all rates on seed 0, and at the best on the others."""
    found = {rate: _perplexity(plan, start, rule, rate, 0) for rate in rates}
    best = min(found, key=lambda rate: found[rate])
    others = [_perplexity(plan, start, rule, best, seed) for seed in range(1, seeds)]
    return Scores({f"{rate:g}": value for rate, value in found.items()}, best, [found[best], *others])


def _perplexity(plan: Plan, start: str, rule: str, rate: float, seed: int) -> float:
    """Perplexity of one run; infinite where its numbers did not stay finite."""
    rising = f"[quantization]\nstrength = {{ start = 0.0, end = 1.0, steps = {plan.steps // 5}, curve = 'linear' }}\n"
    if start == "floats":
        model, quantization = f'[model]\nsource = "{_floats(plan, seed)}"\n', rising
    else:
        model, quantization = f"[model]\n{_ARCHITECTURE}", ""
    output = plan.runs / f"seed-{seed}" / f"{start}-{rule}-{rate:g}"
    optimizer = f'[optimizer]\nname = "{rule}"\n{_schedule(plan, rate, minimum=0.02)}'
    return _run(plan, output, seed, model + optimizer + quantization)


def _floats(plan: Plan, seed: int) -> Path:
    """The checkpoint that quantization begins with."""
    output = plan.runs / f"seed-{seed}" / "floats"
    model = f'[model]\nweights = "float"\nactivation_bits = 0\n{_ARCHITECTURE}'
    _run(plan, output, seed + 100, f"{model}[optimizer]\n{_schedule(plan, 4e-3, minimum=0.3)}weight_decay = 0.1\n")
    return (output / "model").resolve()


def _schedule(plan: Plan, rate: float, *, minimum: float) -> str:
    return f"learning_rate = {rate:g}\nwarmup = {plan.steps // 20}\ncurve = 'cosine'\nminimum = {minimum}\n"


def _run(plan: Plan, output: Path, seed: int, text: str) -> float:
    """Perplexity of a run, which is made unless it is there."""
    scores = output / "score.json"
    if not scores.exists():
        output.parent.mkdir(parents=True, exist_ok=True)
        config = output.with_name(f"{output.name}.toml")  # the dot of a rate begins no suffix
        config.write_text(
            f'output = "{output.resolve()}"\nseed = {seed}\n{text}'
            f'[data]\ntrain = ["{plan.text.resolve()}"]\nholdout = 0.1\nlength = {plan.length}\n'
            f'cache = "{(plan.runs / "tokens").resolve()}"\n'
            f"[loop]\nsteps = {plan.steps}\nbatch = {plan.batch}\nevaluation_windows = 512\nrollbacks = 0\n"
            f"[engine]\nthreads = {plan.threads}\nmicro_batch = {plan.batch}\n",
            encoding="utf-8",
        )
        try:
            result = train(read_config(config))
            perplexity = result.perplexity if result is not None else None
        except TrainingError as error:
            click.echo(f"{output.name}: {error}")
            perplexity = float("inf")
        if perplexity is None:
            raise click.Abort
        output.mkdir(exist_ok=True)
        scores.write_text(json.dumps(perplexity), encoding="utf-8")
        click.echo(f"seed {seed}: {output.name}: {perplexity:.2f}")
    return float(json.loads(scores.read_text("utf-8")))


def summary(found: Mapping[str, Mapping[str, Scores]]) -> dict[str, object]:
    """Mean, deviation, and how far below that of AdamW each seed's perplexity is, by start and rule."""
    return {
        start: {
            rule: {
                **asdict(scores),
                "mean": mean(scores.perplexities),
                "deviation": stdev(scores.perplexities) if len(scores.perplexities) > 1 else 0.0,
                "over_adamw": [
                    one / other for one, other in zip(scores.perplexities, rules["adamw"].perplexities, strict=True)
                ],
            }
            for rule, scores in rules.items()
        }
        for start, rules in found.items()
    }


@click.command()
@click.argument("text", type=click.Path(path_type=Path, exists=True))
@click.argument("runs", type=click.Path(path_type=Path))
@click.option("--start", "starts", type=click.Choice(STARTS), multiple=True, default=STARTS, show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--steps", default=300, show_default=True)
@click.option("--batch", default=16, show_default=True, help="Sequences a step.")
@click.option("--length", default=64, show_default=True, help="Tokens of a sequence.")
@click.option("--rate", "rates", type=float, multiple=True, default=(4e-3, 8e-3, 16e-3), show_default=True)
@click.option("--threads", default=0, show_default=True, help="Of a run; 0 is all cores.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON file to write.")
def main(
    text: Path,
    runs: Path,
    starts: tuple[str, ...],
    seeds: int,
    steps: int,
    batch: int,
    length: int,
    rates: tuple[float, ...],
    threads: int,
    out: Path,
) -> None:
    """Train and compare."""
    plan = Plan(text, runs, steps, batch, length, threads)
    found = {start: {rule: scored(plan, start, rule, rates, seeds) for rule in RULES} for start in starts}
    facts = {
        "steps": steps, "batch": batch, "length": length, "text": text.name, "parameters": PARAMETERS,
        "perplexity": summary(found), "machine": machine.describe(),
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    for start, rules in found.items():
        for rule, scores in rules.items():
            spread = stdev(scores.perplexities) if seeds > 1 else 0.0
            click.echo(f"{start}, {rule}, rate {scores.rate:g}: {mean(scores.perplexities):.2f} +- {spread:.2f}")


if __name__ == "__main__":
    main()
