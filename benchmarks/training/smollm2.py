"""What a few hundred steps do to a ternary SmolLM2-135M: it learns from itself, as floats.

    python -P benchmarks/training/texts.py TEXTS
    python -P benchmarks/training/smollm2.py TEXTS RUN --out smollm2.json

All linear layers of the blocks become ternary with 8-bit activations; embedding and head stay floats. The loss is the
cross entropy of the texts and the divergence from the float model. Scored is the last tenth of each text, which is not
trained on: the float model, its ternary conversion without training, and the trained one, each as a package.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

import bitnet_onnx
from bitnet_onnx.benchmarks import machine
from bitnet_onnx.benchmarks.tables import check_plot
from bitnet_onnx.benchmarks.training.ordering import TEXTS, held_out
from bitnet_onnx.evaluation.quality import QualityOptions, WindowRule
from bitnet_onnx.training import read_config, train
from bitnet_onnx.training.monitoring import LOG_NAME, History

SOURCE = "smollm2-135m-instruct"
LENGTH = 256


def write_config(texts: Path, run: Path, steps: int, batch: int, rate: float, threads: int) -> Path:
    """The configuration of the run."""
    files = ", ".join(f'"{texts.resolve() / name}"' for name in TEXTS)
    text = f"""\
output = "{run.resolve()}"
seed = 0
[model]
source = "{SOURCE}"
[data]
train = [{files}]
holdout = 0.1
length = {LENGTH}
[loop]
steps = {steps}
batch = {batch}
evaluate_every = {max(1, steps // 20)}
evaluation_windows = 32
checkpoint_every = {max(1, steps // 4)}
keep = 1
measure_every = {max(1, steps // 10)}
[optimizer]
learning_rate = {rate}
warmup = {max(1, steps // 20)}
curve = "cosine"
minimum = 0.02
weight_decay = 0.01
[quantization]
strength = {{ start = 0.0, end = 1.0, steps = {max(1, steps // 4)}, curve = "linear" }}
[losses]
cross_entropy = 0.5
distillation = 0.5
[engine]
threads = {threads}
"""
    path = run.with_suffix(".toml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@click.command()
@click.argument("texts", type=click.Path(path_type=Path, exists=True))
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--steps", default=300, show_default=True)
@click.option("--batch", default=4, show_default=True, help="Sequences of 256 tokens a step.")
@click.option("--rate", default=1e-3, show_default=True, help="Learning rate.")
@click.option("--threads", default=0, show_default=True, help="0 is all cores.")
@click.option("--tokens", default=16384, show_default=True, help="Of each text that are scored.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON file to write.")
@click.option("--plot", type=click.Path(path_type=Path), help="PNG, SVG or PDF to draw.")
def main(
    texts: Path, run: Path, steps: int, batch: int, rate: float, threads: int, tokens: int, out: Path, plot: Path | None
) -> None:
    """Train, convert and score."""
    if not (run / "model" / "config.json").exists():
        train(read_config(write_config(texts, run, steps, batch, rate, threads)))
    history = History.read(run / LOG_NAME)
    rule = WindowRule(size=LENGTH, tokens=tokens)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        held = [held_out(texts / text, folder) for text in TEXTS]
        scores = {}
        for model, source, weights in (
            ("float", SOURCE, "float32"),
            ("ternary without training", SOURCE, "ternary"),
            ("trained", str(run / "model"), "ternary"),
        ):
            package = folder / "package"
            bitnet_onnx.convert(source, package, weights=weights, group_size=0, head="float32", overwrite=True)
            found = bitnet_onnx.evaluate(package, texts=held, options=QualityOptions(rule=rule))
            whole = [text for text in [*found.texts, found.total] if text is not None]
            scores[model] = {Path(text.name).name: text.perplexity for text in whole}
            click.echo(f"{model}: " + ", ".join(f"{text} {value:,.1f}" for text, value in scores[model].items()))
    facts = {
        "steps": steps,
        "batch": batch,
        "rate": rate,
        "length": LENGTH,
        "tokens_scored": tokens,
        "perplexity": scores,
        "validation": history.validation,
        "machine": machine.describe(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    if plot is not None:
        draw(history.validation, scores["float"]["all"], plot)


def draw(validation: Sequence[tuple[float, float]], floats: float, path: Path) -> None:
    """Draw the perplexity of evaluations over the steps, and that of the float model.

    Raises:
        InputError: matplotlib is not installed, or the file cannot be written.
    """
    check_plot(path)
    # Optional, slow to import, and not to look for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 3.8), layout="constrained")
    axes = figure.subplots()
    steps, losses = zip(*validation, strict=True)
    axes.plot(steps, [math.exp(loss) for loss in losses], color="#4878a8", marker="o", markersize=3, label="ternary")
    axes.axhline(floats, color="#9a9a9a", linestyle="--", linewidth=1, label="float model")
    axes.set_yscale("log")
    axes.set_xlabel("steps")
    axes.set_ylabel("perplexity, held out")
    axes.grid(visible=True, alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
