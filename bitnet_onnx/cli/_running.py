"""Options of several commands that run a package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from bitnet_onnx.runtime.kv_scales import KV_TYPES

_Command = TypeVar("_Command", bound=Callable[..., Any])
_BITS: Final = {"float": 0, "8": 8, "16": 16}


def _bits(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    return None if value is None else _BITS[value]


def activations_option(function: _Command) -> _Command:
    """Adds `--activations`, which the command gets as `activation_bits`: 0, 8, 16 or None."""
    return click.option(
        "--activations",
        "activation_bits",
        type=click.Choice(list(_BITS)),
        callback=_bits,
        help="Bits of the linear layers' inputs; with 8 the head keeps its own.  [default: as the package says]",
    )(function)


def speculate_option(function: _Command) -> _Command:
    """Adds `--speculate`."""
    return click.option(
        "--speculate",
        type=int,
        default=0,
        show_default=True,
        metavar="N",
        help="Most tokens guessed at a time from the text so far; 0: none. Answers stay the same.",
    )(function)


def kv_option(function: _Command) -> _Command:
    """Adds `--kv`."""
    return click.option(
        "--kv",
        type=click.Choice(KV_TYPES),
        default="float32",
        show_default=True,
        help="Keys and values; int8 takes a quarter of the memory.",
    )(function)
