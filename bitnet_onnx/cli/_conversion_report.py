"""What `bitnet-onnx convert` says of what it wrote."""

from __future__ import annotations

import click
from rich.console import Console

from bitnet_onnx.cli._console import error_console, printable, size
from bitnet_onnx.converters import Conversion, Export
from bitnet_onnx.converters.onnx._linears import LayerRecord
from bitnet_onnx.policy import HEAD_ROLES, Weights


def report_export(written: Export, seconds: float) -> None:
    """Print what an export wrote and lost."""
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(printable(str(written.path)), style="bold", soft_wrap=True)
    spec = written.spec
    console.print(
        f"  {spec.family}, {spec.num_hidden_layers} layers, hidden {spec.hidden_size}, vocabulary {spec.vocab_size}"
        f"; {size(written.total_bytes)} in {seconds:.1f} s"
    )
    console.print(f"  {written.target}: {written.layout}", soft_wrap=True)
    for loss in written.losses or ("nothing was lost",):
        console.print(f"  {printable(loss)}", soft_wrap=True)


def report_conversion(conversion: Conversion, asked: str, seconds: float) -> None:
    """Print what a conversion wrote, by the weights that were asked for, and warn of what it made worse."""
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(printable(str(conversion.path)), style="bold", soft_wrap=True)
    total = conversion.graph_bytes + conversion.data_bytes
    spec = conversion.spec
    console.print(
        f"  {spec.family}, {spec.num_hidden_layers} layers, hidden {spec.hidden_size}, vocabulary {spec.vocab_size}"
        f"; {size(total)} in {seconds:.1f} s"
    )
    blocks = _summary(conversion, head=False)
    console.print(f"  blocks: {blocks}")
    console.print(f"  head and embedding: {_summary(conversion, head=True)}")
    console.print(f"  {conversion.bits_per_weight:.2f} bits a weight over all, scales included")
    if conversion.scaled_inputs:
        console.print(f"  {conversion.scaled_inputs} inputs of layers were scaled to round better")
    if asked == "auto" and "int4" in blocks:
        click.echo(
            "  The checkpoint is not ternary, so auto chose int4: the smallest precision at which an ordinary model\n"
            "  still answers properly. Ternary without training loses the model's quality."
        )
    if warning := _warning(conversion):
        error_console().print(f"[yellow]warning:[/] {warning}", soft_wrap=True)


def _warning(conversion: Conversion) -> str:
    """What makes the package a worse model than it looks, or empty."""
    blocks = [layer for layer in conversion.layers if layer.role not in HEAD_ROLES]
    if conversion.trained_ternary:
        if all(layer.weights in (Weights.TERNARY, Weights.INT2) for layer in blocks):
            return ""
        return (
            "this model was trained with ternary weights and is another model at any other precision; "
            "--weights auto makes it ternary"
        )
    if any(layer.weights is Weights.TERNARY and layer.relative_error > 0.1 for layer in blocks):
        return (
            "these weights were not trained to be ternary: expect a model that no longer answers sensibly; "
            "int4 is the smallest precision that does without training"
        )
    return ""


def _summary(conversion: Conversion, *, head: bool) -> str:
    """Precisions of a part of the model, most weights first: `int4 in groups of 32 (5.00 bits, error 8.9 %)`."""
    parts: dict[str, list[LayerRecord]] = {}
    for layer in conversion.layers:
        if (layer.role in HEAD_ROLES) is head:
            name = f"{layer.weights} in groups of {layer.group_size}" if layer.group_size else str(layer.weights)
            parts.setdefault(name, []).append(layer)
    return ", ".join(f"{name} ({_mean(layers)})" for name, layers in parts.items())


def _mean(layers: list[LayerRecord]) -> str:
    weights = [layer.shape[0] * layer.shape[1] for layer in layers]
    bits = sum(layer.bits_per_weight * count for layer, count in zip(layers, weights, strict=True)) / sum(weights)
    error = sum(layer.relative_error * count for layer, count in zip(layers, weights, strict=True)) / sum(weights)
    lossless = "exact" if error == 0 else f"weight error {100 * error:.1f} %"
    return f"{bits:.2f} bits a weight, {lossless}"
