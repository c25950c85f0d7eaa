"""The options of `convert` that decide what becomes of each matrix."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import click

from bitnet_onnx.api import make_policy
from bitnet_onnx.calibration import ModelStatistics, open_statistics
from bitnet_onnx.calibration.sensitivity_table import Found, search_policy
from bitnet_onnx.policy import Policy
from bitnet_onnx.policy_file import read_policy
from bitnet_onnx.quantization.method import MethodName


@dataclass(frozen=True, slots=True)
class PrecisionOptions:
    """As the command line has them; None is what was not given.

    Attributes:
        weights: of the blocks.
        head: of the head and the embedding.
        group_size: of the blocks.
        method: of all.
        policy: a file.
        calibration: a file.
        bits: the most a weight may take in the mean.
        max_loss: the most that may be lost, nats a token.
    """

    weights: str
    head: str
    group_size: int | None
    method: str
    policy: Path | None
    calibration: Path | None
    bits: float | None
    max_loss: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What the conversion is to do.

    Attributes:
        policy: for each matrix.
        statistics: of the inputs, if any.
        found: what a search promised, if there was one.
    """

    policy: Policy
    statistics: ModelStatistics | None
    found: Found | None = None


def plan(options: PrecisionOptions, *, named: frozenset[str]) -> Plan:
    """What the options ask for.

    Args:
        options: all of them.
        named: which of `weights`, `head` and `group_size` were given.

    Raises:
        InputError: a file cannot be used, or nothing is within the bound.
    """
    statistics = None if options.calibration is None else open_statistics(options.calibration)
    searches = options.bits is not None or options.max_loss is not None
    if options.bits is not None and options.max_loss is not None:
        raise click.UsageError("--bits and --max-loss are two ways to say how much: give one")
    if searches and options.policy is not None:
        raise click.UsageError("--policy says what --bits and --max-loss search for: give one")
    if (searches or options.policy is not None) and named:
        option = sorted(named)[0].replace("_", "-")
        raise click.UsageError(f"--{option} is decided by --policy, --bits or --max-loss: leave it out")
    method = MethodName(options.method)
    if searches:
        if statistics is None:
            raise click.UsageError("--bits and --max-loss need --calibration, made with --sensitivity")
        found = search_policy(statistics.sensitivity, bits_per_weight=options.bits, max_loss=options.max_loss)
        return Plan(_by(found.policy, method), statistics, found)
    policy = (
        make_policy(options.weights, options.head, options.group_size)
        if options.policy is None
        else read_policy(options.policy)
    )
    return Plan(_by(policy, method), statistics)


def _by(policy: Policy, method: MethodName) -> Policy:
    """The policy by another method, where one was named."""
    if method is MethodName.AUTO:
        return policy
    return Policy(
        replace(policy.default, method=method),
        policy.head,
        tuple((glob, replace(precision, method=method)) for glob, precision in policy.overrides),
    )
