"""What each precision of the linear layers costs, ours and that of others, on text that nothing was fitted to.

    python -P benchmarks/quality.py SOURCE --text FILE --text FILE --calibration STATS --out quality.json

The last fifth of each text is held out and scored, in windows of 256 tokens without a beginning token, spread evenly;
the windows, and a float32 reference, are the same for all. Heads are float32 and linear layers round their inputs to 8
bits, unless the name says otherwise. Ours is what `bitnet-onnx convert` writes; others' weights are rounded by their
own code and put into the float32 package. With statistics of `bitnet-onnx calibrate --sensitivity`, from text that is
not held out, calibrated conversions are measured too. A second call goes on where the first stopped.
"""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import click

import bitnet_onnx
from bitnet_onnx.benchmarks._weight_peers import PEERS, Peer, write_peer
from bitnet_onnx.calibration import ModelStatistics, open_statistics
from bitnet_onnx.calibration.sensitivity_table import search_policy
from bitnet_onnx.converters import Conversion
from bitnet_onnx.evaluation.quality import TextQuality, WindowRule
from bitnet_onnx.evaluation.quality._reader import WindowReader
from bitnet_onnx.evaluation.quality._windows_measured import Sums
from bitnet_onnx.evaluation.quality.perplexity import check_windows, score_text
from bitnet_onnx.evaluation.quality.text import TokenText, read_text, tokenize
from bitnet_onnx.policy import HEAD_ROLES, Policy, Precision, Weights
from bitnet_onnx.quantization.method import MethodName
from bitnet_onnx.runtime import PackageInfo, auto_select_device
from bitnet_onnx.runtime.tokenizer import TextTokenizer

HELD_OUT = 0.2


@dataclass(frozen=True, slots=True)
class Setting:
    """One call of `convert`."""

    name: str
    weights: str
    group_size: int | None = None
    head: str = "float32"


SETTINGS = (
    Setting("int8", "int8"),
    Setting("int6, group 32", "int6", 32),
    Setting("int4, group 32", "int4", 32),
    Setting("int4, group 64", "int4", 64),
    Setting("int4, group 32, head int8 (the default)", "int4", 32, "auto"),
    Setting("ternary (absmean)", "ternary"),
)


@dataclass(frozen=True, slots=True)
class Calibrated:
    """One conversion with statistics.

    Attributes:
        name: how the results call it.
        precision: of all linear layers, or the most bits of one of their weights in the mean.
    """

    name: str
    precision: Precision | float


CALIBRATED = (
    Calibrated("int8, calibrated", Precision(Weights.INT8, 0)),
    Calibrated("int4, group 64, calibrated", Precision(Weights.INT4, 64)),
    Calibrated("mixed, at most 4.5 bits", 4.5),
    Calibrated("mixed, at most 3.5 bits", 3.5),
    Calibrated("ternary, group 64, calibrated", Precision(Weights.TERNARY, 64, method=MethodName.GPTQ)),
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something to measure.

    Attributes:
        name: how the results call it.
        ours: made by this project.
        write: writes its package and gives the bits of a weight of a linear layer, scales included.
    """

    name: str
    ours: bool
    write: Callable[[Path], float]


def candidates(source: str, reference: Path, statistics: ModelStatistics | None = None) -> list[Candidate]:
    """All that is measured, others' beginning with floats whose inputs are rounded."""
    calibrated = []
    if statistics is not None:
        calibrated = [Candidate(one.name, True, partial(_calibrated, source, one, statistics)) for one in CALIBRATED]
    return [
        *(Candidate(setting.name, True, partial(_convert, source, setting)) for setting in SETTINGS),
        *calibrated,
        *(Candidate(peer.name, False, partial(_write, reference, peer)) for peer in PEERS),
    ]


def _convert(source: str, setting: Setting, output: Path) -> float:
    made = bitnet_onnx.convert(
        source, output, weights=setting.weights, group_size=setting.group_size, head=setting.head
    )
    return _bits(made)


def _calibrated(source: str, setting: Calibrated, statistics: ModelStatistics, output: Path) -> float:
    floats = Precision(Weights.FLOAT32)
    if isinstance(setting.precision, Precision):
        policy = Policy(setting.precision, floats)
    else:
        blocks = [unit for unit in statistics.sensitivity if unit.roles[0] not in HEAD_ROLES]
        found = search_policy(blocks, bits_per_weight=setting.precision)
        policy = replace(found.policy, head=floats)
    return _bits(bitnet_onnx.convert(source, output, policy=policy, calibration=statistics))


def _bits(made: Conversion) -> float:
    """Of a weight of a linear layer of the blocks."""
    layers = [layer for layer in made.layers if layer.role not in HEAD_ROLES]
    weights = [layer.shape[0] * layer.shape[1] for layer in layers]
    return sum(layer.bits_per_weight * count for layer, count in zip(layers, weights, strict=True)) / sum(weights)


def _write(reference: Path, peer: Peer, output: Path) -> float:
    write_peer(reference, output, peer)
    return peer.bits


def held_out(path: Path, share: float) -> str:
    """The end of a text, from the beginning of a line on."""
    text = read_text(path)
    start = text.find("\n", int(len(text) * (1 - share))) + 1
    return text[start:]


def measure(
    names: Sequence[Candidate], folder: Path, reference: Path, texts: Sequence[TokenText], rule: WindowRule
) -> list[dict[str, object]]:
    """Score some candidates side by side, so that the reference is run once for all of them."""
    device = auto_select_device()
    readers, bits = [], []
    for index, candidate in enumerate(names):
        path = folder / str(index)
        bits.append(candidate.write(path))
        readers.append(WindowReader(PackageInfo.open(path), device))
    origin = WindowReader(PackageInfo.open(reference), device)
    found: list[list[Sums]] = [score_text(text, rule, readers, origin) for text in texts]
    results = []
    for index, candidate in enumerate(names):
        own = [sums[index] for sums in found]
        qualities = [TextQuality.of(text.name, [sums]) for text, sums in zip(texts, own, strict=True)]
        qualities.append(TextQuality.of("all", own))
        results.append(
            {
                "name": candidate.name,
                "ours": candidate.ours,
                "bits_per_linear_weight": round(bits[index], 3),
                "texts": [asdict(quality) for quality in qualities],
            }
        )
        shutil.rmtree(folder / str(index))
    return results


@click.command()
@click.argument("source")
@click.option("--text", "paths", type=click.Path(path_type=Path, exists=True), multiple=True, required=True)
@click.option("--tokens", default=16384, show_default=True, help="Tokens of each text.")
@click.option("--together", default=7, show_default=True, help="Candidates in memory at a time.")
@click.option("--calibration", type=click.Path(path_type=Path, exists=True), help="Statistics with sensitivities.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON file to write.")
def main(source: str, paths: tuple[Path, ...], tokens: int, together: int, calibration: Path | None, out: Path) -> None:
    """Measure every precision on SOURCE."""
    rule = WindowRule(tokens=tokens)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reference = folder / "reference"
        bitnet_onnx.convert(source, reference, weights="float32", head="float32")
        tokenizer = TextTokenizer(PackageInfo.open(reference))
        texts = [tokenize(held_out(path, HELD_OUT), tokenizer, path.name) for path in paths]
        check_windows(texts, rule)
        head = {
            "source": source,
            "texts": [path.name for path in paths],
            "held_out": f"the last {HELD_OUT:.0%} of each text",
            **rule.as_dict(),
            "machine": platform.machine(),
            "bitnet_onnx": bitnet_onnx.__version__,
        }
        results = _measured_before(out, head)
        done = {result["name"] for result in results}
        statistics = None if calibration is None else open_statistics(calibration)
        todo = [one for one in candidates(source, reference, statistics) if one.name not in done]
        for start in range(0, len(todo), together):
            found = measure(todo[start : start + together], folder, reference, texts, rule)
            results += found
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps({**head, "results": results}, indent=1) + "\n", encoding="utf-8")
            for result in found:
                click.echo(_line(result))


def _measured_before(out: Path, head: dict[str, object]) -> list[dict[str, object]]:
    """What a call that asked for the same has written already."""
    if not out.exists():
        return []
    report = json.loads(out.read_text("utf-8"))
    results: list[dict[str, object]] = report.pop("results", [])
    if report != head:
        raise SystemExit(f"{out} holds other measurements: name another file, or remove it")
    return results


def _line(result: dict[str, object]) -> str:
    texts = result["texts"]
    parts = [f"{result['name']}: {result['bits_per_linear_weight']} bits"]
    for text in texts if isinstance(texts, list) else []:
        other = text["comparison"]
        parts.append(
            f"{text['name']} {text['perplexity']:.2f} ({other['perplexity_ratio']:.4f}x ± "
            f"{other['perplexity_ratio'] * other['difference_error']:.4f}, KL {other['divergence']:.4f}, "
            f"top-1 {other['agreement']:.3f})"
        )
    return ", ".join(parts)


if __name__ == "__main__":
    main()
