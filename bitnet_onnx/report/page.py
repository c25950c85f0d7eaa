"""A measurement as one HTML page that loads nothing else."""

from __future__ import annotations

import math
from html import escape
from typing import Final

from bitnet_onnx.evaluation.quality import TextQuality
from bitnet_onnx.report.charts import charts
from bitnet_onnx.report.findings import Finding, Verdict, findings, judge
from bitnet_onnx.report.layers import LayerQuality
from bitnet_onnx.report.markup import chart, document, figures, number, table
from bitnet_onnx.report.measurement import Measurement

_MEGA: Final = 1e6


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
        *(chart(name, svg, text) for name, svg, text in charts(found)),
        _layers(found),
        f'<p class="soft">{escape(_rule(found))}</p>',
    ]
    return document(title, parts)


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
    return figures(cells)


def _texts(found: Measurement) -> str:
    rows = [_text(text) for text in found.quality.texts]
    if len(rows) > 1 and found.quality.total is not None:
        rows.append(_text(found.quality.total))
    head = ("text", "tokens", "perplexity", "original", "ratio", "bits a byte", "original", "loss", "same token")
    return "<h2>Texts</h2>" + table(head, rows)


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
    return "<h2>The worst layers</h2>" + table(head, rows, texts=(1, 5))


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
    return f"<details><summary>All {len(rows)} matrices</summary>{table(head, rows, texts=(2, 3))}</details>"


def _precision(layer: LayerQuality) -> str:
    groups = f" / {layer.group_size}" if layer.group_size else ""
    return f"{layer.weights}{groups}"


def _rule(found: Measurement) -> str:
    quality = found.quality
    rule = "" if quality.rule is None else f" Texts: {quality.rule.describe()}."
    return f"Measured by bitnet-onnx {quality.tool_version} with the {quality.runtime}.{rule}"
