"""The option `--activations` of the commands that run a package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

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
