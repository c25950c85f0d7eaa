"""A measurement as one HTML page that loads nothing else."""

from __future__ import annotations

import math
from html import escape
from typing import Final

from bitnet_onnx.evaluation.quality import TextQuality
from bitnet_onnx.report.charts import charts
from bitnet_onnx.report.findings import Finding, Verdict, findings, judge
from bitnet_onnx.report.layers import LayerQuality
from bitnet_onnx.report.measurement import Measurement

_MEGA: Final = 1e6
_LARGE: Final = 1000

_STYLE: Final = """
:root { color-scheme: light dark; --paper: #fbfaf8; --card: #ffffff; --ink: #22201d; --soft: #6b665f; --grid: #e4e0d9;
  --good: #1f7a4d; --fair: #a76a00; --poor: #c2410c; --unusable: #b3132b;
  --series-0: #2563a8; --series-1: #c2410c; --series-2: #1f7a4d; --series-3: #8b3fa8; --series-4: #a76a00;
  --series-5: #0f7f86; --series-6: #7a5c4a; }
@media (prefers-color-scheme: dark) { :root { --paper: #161513; --card: #1f1e1b; --ink: #ece8e1; --soft: #a39d93;
  --grid: #37342f; --good: #5cc793; --fair: #e5ab4a; --poor: #f2874f; --unusable: #ff6b7d;
  --series-0: #6ea8e8; --series-1: #f2874f; --series-2: #5cc793; --series-3: #c58be0; --series-4: #e5ab4a;
  --series-5: #57c3ca; --series-6: #c2a28e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.15rem; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .25rem; }
p { margin: .25rem 0 1rem; max-width: 46rem; }
.soft { color: var(--soft); font-size: .9rem; }
.verdict { background: var(--card); border: 1px solid var(--grid); border-left: .4rem solid var(--level);
  border-radius: .5rem; padding: 1.1rem 1.3rem; margin: 1.25rem 0; }
.verdict strong { display: block; font-size: 1.6rem; line-height: 1.25; color: var(--level); }
.verdict p { margin: .4rem 0 0; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .75rem; margin: 1rem 0; }
.numbers div { background: var(--card); border: 1px solid var(--grid); border-radius: .5rem; padding: .6rem .9rem; }
.numbers b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .35rem .6rem; border-bottom: 1px solid var(--grid); white-space: nowrap; }
th { font-weight: 600; color: var(--soft); }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
code { font-family: ui-monospace, monospace; font-size: .95em; }
svg { width: 100%; height: auto; background: var(--card); border: 1px solid var(--grid); border-radius: .5rem; }
summary { cursor: pointer; color: var(--soft); margin: 2.5rem 0 .5rem; }
"""


def render(found: Measurement) -> str:
    """The page.

    Raises:
        UnsupportedError: the library that draws is not installed.
    """
    verdict, worst = judge(found), findings(found)
    title = f"{found.name or found.package}: what {found.bits_per_weight:.2f} bits a weight cost"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<div class="soft">{escape(_about(found))}</div>',
        _verdict(verdict),
        _numbers(found),
        _texts(found),
        _worst(worst),
        *(f"<h2>{escape(name)}</h2><p class='soft'>{escape(text)}</p>{svg}" for name, svg, text in charts(found)),
        _layers(found),
        f'<p class="soft">{escape(_rule(found))}</p>',
    ]
    return (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head>\n<body><main>\n" + "\n".join(parts) + "\n</main></body></html>\n"
    )


def _about(found: Measurement) -> str:
    return f"{found.family}, {found.parameters / _MEGA:,.1f} million weights; {found.package} against {found.source}"


def _verdict(verdict: Verdict) -> str:
    return (
        f'<section class="verdict" style="--level: var(--{verdict.level})"><strong>{escape(verdict.title)}</strong>'
        f"<p>{escape(verdict.text)}</p></section>"
    )


def _numbers(found: Measurement) -> str:
    total = found.quality.total
    cells = [
        ("bits a weight", f"{found.bits_per_weight:.2f}"),
        ("size", f"{found.bytes / _MEGA:,.1f} MB, {found.float_bytes / max(found.bytes, 1):.1f} times smaller"),
    ]
    if total is not None and total.comparison is not None:
        cells += [
            ("perplexity", f"{number(total.perplexity)} / {number(total.comparison.perplexity)}"),
            ("loss, nats a token", number(total.comparison.divergence)),
            ("same likeliest token", f"{100 * total.comparison.agreement:.1f} %"),
        ]
    inner = "".join(
        f"<div><b>{escape(value)}</b><span class='soft'>{escape(name)}</span></div>" for name, value in cells
    )
    return f'<section class="numbers">{inner}</section>'


def _texts(found: Measurement) -> str:
    rows = [_text(text) for text in found.quality.texts]
    if len(rows) > 1 and found.quality.total is not None:
        rows.append(_text(found.quality.total))
    head = ("text", "tokens", "perplexity", "original", "ratio", "bits a byte", "original", "loss", "same token")
    return "<h2>Texts</h2>" + _table(head, rows)


def _text(text: TextQuality) -> list[str]:
    comparison = text.comparison
    if comparison is None:
        return [text.name, f"{text.tokens:,}", number(text.perplexity), "", "", number(text.bits_per_byte), "", "", ""]
    return [
        text.name,
        f"{text.tokens:,}",
        number(text.perplexity),
        number(comparison.perplexity),
        number(comparison.perplexity_ratio),
        number(text.bits_per_byte),
        number(comparison.bits_per_byte),
        number(comparison.divergence),
        f"{100 * comparison.agreement:.1f} %",
    ]


def _worst(worst: tuple[Finding, ...]) -> str:
    if not worst:
        return ""
    rows = [
        [
            one.layer.role,
            _precision(one.layer),
            "" if one.layer.output_error is None else f"{100 * one.layer.output_error:.1f} %",
            f"{one.layer.sqnr:.1f} dB",
            f"{100 * one.share:.1f} %",
            one.advice,
        ]
        for one in worst
    ]
    head = ("layer", "precision", "output error", "weights", "share of all error", "what would help")
    return "<h2>The worst layers</h2>" + _table(head, rows, texts=(1, 5))


def _layers(found: Measurement) -> str:
    rows = [
        [
            layer.role,
            f"{layer.shape[0]} x {layer.shape[1]}",
            _precision(layer),
            layer.method,
            f"{layer.bits_per_weight:.2f}",
            "exact" if math.isinf(layer.sqnr) else f"{layer.sqnr:.1f}",
            f"{layer.cosine:.5f}",
            number(layer.max_error),
            f"{100 * layer.sparsity:.1f} %",
            "" if layer.output_error is None else f"{100 * layer.output_error:.2f} %",
        ]
        for layer in found.layers
    ]
    head = (
        "layer",
        "shape",
        "precision",
        "method",
        "bits",
        "SQNR, dB",
        "cosine",
        "largest error",
        "zeros",
        "output error",
    )
    return f"<details><summary>All {len(rows)} matrices</summary>{_table(head, rows, texts=(2, 3))}</details>"


def _precision(layer: LayerQuality) -> str:
    groups = f" / {layer.group_size}" if layer.group_size else ""
    return f"{layer.weights}{groups}"


def _rule(found: Measurement) -> str:
    quality = found.quality
    rule = "" if quality.rule is None else f" Texts: {quality.rule.describe()}."
    return f"Measured by bitnet-onnx {quality.tool_version} with the {quality.runtime}.{rule}"


def _table(head: tuple[str, ...], rows: list[list[str]], texts: tuple[int, ...] = ()) -> str:
    def row(tag: str, cells: tuple[str, ...] | list[str]) -> str:
        return "".join(
            f"<{tag}{' class=text' if index in texts else ''}>{escape(cell)}</{tag}>"
            for index, cell in enumerate(cells)
        )

    body = "".join(f"<tr>{row('td', cells)}</tr>" for cells in rows)
    return f'<div class="scroll"><table><thead><tr>{row("th", head)}</tr></thead><tbody>{body}</tbody></table></div>'


def number(value: float) -> str:
    """With three or four digits that count."""
    if not math.isfinite(value):
        return "beyond measure"
    if value and abs(value) < 0.01:
        return f"{value:.1e}"
    return f"{value:.3f}" if value < 10 else f"{value:.2f}" if value < _LARGE else f"{value:,.0f}"
