"""Options of the commands that run on a Ray cluster too."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from bitnet_onnx.errors import InputError, UnsupportedError

_Command = TypeVar("_Command", bound=Callable[..., Any])
#: Modules of the extra `ray`, one of each part of it.
_NEEDED = ("ray", "pyarrow", "watchfiles")
_COUNTS = re.compile(r"(\d{1,6})(?::(\d{1,6}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class OnRay:
    """Where on Ray a command runs.

    Attributes:
        address: of the cluster to join; None: one is started on this machine.
        replicas: the least and the most; None: one on each node.
    """

    address: str | None
    replicas: tuple[int, int] | None


def ray_options(replicas_help: str) -> Callable[[_Command], _Command]:
    """Adds --ray, --ray-address and --replicas."""

    def add(command: _Command) -> _Command:
        for option in (
            click.option("--replicas", metavar="N", help=replicas_help),
            click.option(
                "--ray-address", metavar="ADDRESS", help="With --ray: the cluster to join, auto or HOST:PORT."
            ),
            click.option(
                "--ray", "use_ray", is_flag=True, help="Run on a Ray cluster, by default one on this machine."
            ),
        ):
            command = option(command)
        return command

    return add


def on_ray(use_ray: bool, address: str | None, replicas: str | None) -> OnRay | None:
    """What the options ask for, or None without --ray.

    Raises:
        InputError: an option is wrong or belongs to --ray.
        UnsupportedError: the extra is not installed.
    """
    if not use_ray:
        if address is not None or replicas is not None:
            raise InputError(f"{'--ray-address' if address is not None else '--replicas'} belongs to --ray")
        return None
    counts = None
    if replicas is not None:
        match = _COUNTS.fullmatch(replicas)
        counts = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= counts[0] <= counts[1]:
            raise InputError(f"--replicas is {replicas!r:.40}, expected a number from 1, or two as 1:4")
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise UnsupportedError(f"--ray needs {missing[0]}, which is not installed: pip install 'bitnet-onnx[ray]'")
    return OnRay(address, counts)
