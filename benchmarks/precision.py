"""What each precision costs in quality: perplexity on a text, and a dozen questions.

    python -P benchmarks/precision.py SOURCE --text FILE --out benchmarks/results/precision.json

Perplexity is that of `bitnet-onnx evaluate --tokens`: windows of 256 tokens, spread evenly over the text. A question
counts as answered when the greedy answer of 32 tokens contains the expected word. Every setting is converted into a
temporary directory, so that a setting here is exactly one of `bitnet-onnx convert`.
"""

from __future__ import annotations

import json
import platform
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click

import bitnet_onnx
from bitnet_onnx.evaluation.quality import QualityOptions, WindowRule
from bitnet_onnx.evaluation.quality.windows import WINDOW
from bitnet_onnx.runtime import Model, SamplingParameters, load

QUESTIONS = (
    ("What is the capital of Japan?", ("tokyo",)),
    ("What is the capital of France?", ("paris",)),
    ("What is the capital of Italy?", ("rome",)),
    ("What is the capital of Germany?", ("berlin",)),
    ("What is 2 + 2?", ("4", "four")),
    ("What color is the sky on a clear day?", ("blue",)),
    ("Who wrote Romeo and Juliet?", ("shakespeare",)),
    ("What is the largest planet in the solar system?", ("jupiter",)),
    ("How many days are there in a week?", ("seven", "7")),
    ("What is the chemical formula of water?", ("h2o", "h₂o")),
    ("What is the opposite of hot?", ("cold",)),
    ("Name the ocean between Europe and America.", ("atlantic",)),
)


@dataclass(frozen=True, slots=True)
class Setting:
    """One call of `convert`."""

    weights: str
    group_size: int
    head: str

    @property
    def name(self) -> str:
        """How the results call it."""
        groups = f" g{self.group_size}" if self.group_size else ""
        return f"{self.weights}{groups}, head {self.head}"


SETTINGS = (
    Setting("float32", 0, "float32"),
    Setting("float32", 0, "int8"),
    Setting("int8", 0, "int8"),
    Setting("int6", 32, "int8"),
    Setting("int4", 32, "int8"),
    Setting("int4", 64, "int8"),
    Setting("int4", 128, "int8"),
    Setting("int4", 0, "int8"),
    Setting("int4", 32, "int6"),
    Setting("ternary", 0, "int8"),
)


def perplexity(package: Path, text: Path, windows: int) -> float:
    """Perplexity of the text under a package."""
    options = QualityOptions(WindowRule(tokens=windows * WINDOW))
    return bitnet_onnx.evaluate(package, texts=[text], options=options).texts[0].perplexity


def answered(model: Model) -> int:
    """How many of the questions are answered."""
    parameters = SamplingParameters(max_new_tokens=32)
    count = 0
    for question, words in QUESTIONS:
        text = model.chat([{"role": "user", "content": question}], parameters).text.lower()
        count += any(word in text for word in words)
    return count


@click.command()
@click.argument("source")
@click.option("--text", type=click.Path(path_type=Path, exists=True), required=True, help="UTF-8 text to read.")
@click.option("--windows", type=click.IntRange(min=1), default=40, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON file to write.")
def main(source: str, text: Path, windows: int, out: Path) -> None:
    """Measure every setting on SOURCE."""
    results = []
    for setting in SETTINGS:
        with tempfile.TemporaryDirectory() as folder:
            package = Path(folder, "package")
            conversion = bitnet_onnx.convert(
                source, package, weights=setting.weights, group_size=setting.group_size, head=setting.head
            )
            result = {
                "setting": setting.name,
                "megabytes": round((conversion.graph_bytes + conversion.data_bytes) / 1e6, 1),
                "bits_per_weight": round(conversion.bits_per_weight, 2),
                "perplexity": round(perplexity(package, text, windows), 2),
                "questions_answered": answered(load(package)),
            }
        results.append(result)
        click.echo(json.dumps(result))
    report = {
        "source": source,
        "text": text.name,
        "windows": windows,
        "questions": len(QUESTIONS),
        "machine": platform.machine(),
        "bitnet_onnx": bitnet_onnx.__version__,
        "results": results,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
