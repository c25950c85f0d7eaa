"""What was seen of the inputs of linear layers while a model read text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bitnet_onnx.errors import InputError
from bitnet_onnx.quantized import FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class InputStatistics:
    """The inputs `x` of one linear layer over many tokens.

    Attributes:
        tokens: how many were seen.
        peak: `[K]`, the largest magnitude of each feature.
        mean: `[K]`, of each feature.
        moment: the mean of `x x^T` in blocks on its diagonal, `[b, b]` each, that cover K features in order; what lies
            beside the blocks counts as zero.
        sample: `[S, K]`, the inputs at some of the tokens, spread evenly.

    Raises:
        InputError: the sizes do not fit each other.
    """

    tokens: int
    peak: FloatArray
    mean: FloatArray
    moment: tuple[FloatArray, ...]
    sample: FloatArray

    def __post_init__(self) -> None:
        features = self.features
        blocks = [block.shape for block in self.moment]
        if (
            self.peak.shape != (features,)
            or self.mean.shape != (features,)
            or any(len(shape) != 2 or shape[0] != shape[1] for shape in blocks)
            or sum(shape[0] for shape in blocks) != features
        ):
            raise InputError(
                f"statistics of {features} features: peak {list(self.peak.shape)}, mean {list(self.mean.shape)}, "
                f"moment in blocks of {[shape[0] for shape in blocks]}"
            )

    @property
    def features(self) -> int:
        """K."""
        return int(self.sample.shape[1])

    def scaled(self, scale: FloatArray) -> InputStatistics:
        """The statistics of `x / scale`.

        Args:
            scale: float32 `[K]`, positive and finite.

        Raises:
            InputError: it is not.
        """
        if scale.shape != (self.features,) or not (np.isfinite(scale).all() and (scale > 0).all()):
            raise InputError(
                f"scales {list(scale.shape)} of {self.features} features: each must be positive and finite"
            )
        blocks = []
        start = 0
        for block in self.moment:
            own = scale[start : start + len(block)].astype(np.float64)
            blocks.append((block / own[:, None] / own[None, :]).astype(np.float32))
            start += len(block)
        return InputStatistics(
            self.tokens, self.peak / scale, self.mean / scale, tuple(blocks), (self.sample / scale).astype(np.float32)
        )

    def rotated(self, rotation: FloatArray, heads: int) -> InputStatistics:
        """The statistics of inputs each of whose heads `x_h` became `rotation @ x_h`.

        Args:
            rotation: float32 `[d, d]`, orthogonal.
            heads: how many, `heads * d = K`.

        Returns:
            All but `peak` exactly, which can only be that of the sample.

        Raises:
            InputError: the heads do not fit the features or cross blocks of the moment.
        """
        size = len(rotation)
        if rotation.shape != (size, size) or heads * size != self.features:
            raise InputError(f"{heads} heads turned by {list(rotation.shape)} are not {self.features} features")
        if any(len(block) % size for block in self.moment):
            sizes = [len(block) for block in self.moment]
            raise InputError(f"heads of {size} do not fit into blocks of the moment of {sizes}: make them multiples")
        wide = rotation.astype(np.float64)

        def turn(values: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
            turned: npt.NDArray[np.float64] = values.reshape(-1, size) @ wide.T
            return turned.reshape(values.shape)

        sample = turn(self.sample).astype(np.float32)
        return InputStatistics(
            self.tokens,
            np.abs(sample).max(axis=0, initial=0),
            turn(self.mean).astype(np.float32),
            tuple(turn(turn(block).T).T.astype(np.float32) for block in self.moment),
            sample,
        )


class Calibration(Protocol):
    """Statistics of a model's linear layers by role (`layers.0.attn.q_proj`)."""

    def of(self, role: str, /) -> InputStatistics | None:
        """Those of one layer's input, or None where nothing was collected."""
        ...
