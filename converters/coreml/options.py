"""What a Core ML package is to be."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class DeploymentTarget(enum.StrEnum):
    """The oldest system that opens a package."""

    IOS18 = "iOS18"
    IOS26 = "iOS26"


class TernaryStorage(enum.StrEnum):
    """How ternary matrices are stored."""

    #: 2-bit indices of a table
    LUT = "lut"
    #: a bit for each weight that tells zeros, and one for the sign of each other weight
    SPARSE = "sparse"


@dataclass(frozen=True, slots=True)
class CoreMLOptions:
    """How a package is written.

    Attributes:
        target: the oldest system that opens it; iOS 18 stands for macOS 15 too, iOS 26 for macOS 26.
        ternary: how ternary matrices are stored.
        split: two functions, `prefill` for any number of tokens and `decode` for one, and not one for all.
    """

    target: DeploymentTarget = DeploymentTarget.IOS18
    ternary: TernaryStorage = TernaryStorage.LUT
    split: bool = False
