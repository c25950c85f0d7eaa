"""BitLinear and BitEmbedding by the Metal shaders, as a host would dispatch them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from metal_emulation import Emulation, structures

from bitnet_onnx.bitlinear import PackedLinear
from bitnet_onnx.quantized import FloatArray

FloatOrHalf = npt.NDArray[np.float32 | np.float16]


@dataclass(frozen=True, slots=True)
class Codes:
    """What quantize_activations gives."""

    codes: npt.NDArray[np.int8]
    factor: FloatArray
    sums: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Variant:
    """How the sums are formed: a kernel and its function constants."""

    kernel: str
    simdgroups: int = 4
    settings: dict[str, int] = field(default_factory=dict)

    def grid(self, panels: int, tokens: int) -> tuple[int, int, int]:
        if self.kernel == "matmul":
            return panels, -(-tokens // 32), 1
        at_once = self.settings["Tokens"] if self.kernel == "matvec_small" else 1
        return -(-panels // self.settings["Panels"]), -(-tokens // at_once), 1


def matvec(simdgroups: int = 4, panels: int = 1, unroll: int = 1, masks: int = 0) -> Variant:
    return Variant("matvec", simdgroups, {"Panels": panels, "Unroll": unroll, "Masks": masks})


def matvec_small(tokens: int, simdgroups: int = 4, panels: int = 1, unroll: int = 1, masks: int = 0) -> Variant:
    settings = {"Panels": panels, "Unroll": unroll, "Masks": masks, "Tokens": tokens}
    return Variant("matvec_small", simdgroups, settings)


def matmul(matrices: bool) -> Variant:
    return Variant("matmul", 4, {"Matrices": int(matrices)})


class MetalLinear:
    """One packed matrix on the device."""

    def __init__(self, device: Emulation, linear: PackedLinear) -> None:
        self.device, self.linear = device, linear
        a = linear.attributes
        self.groups = a.grid.groups(a.in_features) if a.grid.group_size else 1
        self.padded = -(-a.in_features // 64) * 64
        self.panels = -(-a.out_features // 32)

    def arguments(self, tokens: int):
        a = self.linear.attributes
        return structures()["LinearArguments"](
            in_features=a.in_features,
            out_features=a.out_features,
            tokens=tokens,
            groups=self.groups,
            group_size=a.grid.group_size or self.padded,
            zero_point=a.grid.zero_point,
            padded=self.padded,
            epsilon=a.epsilon,
        )

    def quantize(self, x: FloatOrHalf, simdgroups: int = 4) -> Codes:
        tokens = len(x)
        norm = self.linear.norm_weight
        result = Codes(
            np.empty((tokens, self.padded), np.int8),
            np.empty(tokens, np.float32),
            np.empty((tokens, self.groups), np.int32),
        )
        buffers = {
            "kQuantizeX": x,
            "kQuantizeCodes": result.codes,
            "kQuantizeFactor": result.factor,
            "kQuantizeSums": result.sums,
        }
        if norm is not None:
            buffers["kQuantizeNormWeight"] = norm
        settings = {"Simdgroups": simdgroups, "Half": x.dtype == np.float16, "Norm": norm is not None}
        outputs = ("kQuantizeCodes", "kQuantizeFactor", "kQuantizeSums")
        arguments = self.arguments(tokens)
        self.device.run("quantize_activations", arguments, settings, buffers, (tokens, 1, 1), outputs)
        return result

    def multiply(self, codes: Codes, variant: Variant, half: bool = False) -> FloatOrHalf:
        a, tokens = self.linear.attributes, len(codes.codes)
        y = np.empty((tokens, a.out_features), np.float16 if half else np.float32)
        buffers = {
            "kLinearWeight": self.linear.weight,
            "kLinearScale": self.linear.scale,
            "kLinearCodes": codes.codes,
            "kLinearFactor": codes.factor,
            "kLinearSums": codes.sums,
            "kLinearY": y,
        }
        if self.linear.bias is not None:
            buffers["kLinearBias"] = self.linear.bias
        settings = {
            "Simdgroups": variant.simdgroups,
            "Half": half,
            "Bits": a.grid.bits,
            "ScaleKind": self.scale_kind(),
            "Bias": self.linear.bias is not None,
            **variant.settings,
        }
        grid = variant.grid(self.panels, tokens)
        self.device.run(variant.kernel, self.arguments(tokens), settings, buffers, grid, ("kLinearY",))
        return y

    def __call__(self, x: FloatOrHalf, variant: Variant) -> FloatOrHalf:
        return self.multiply(self.quantize(x), variant, x.dtype == np.float16)

    def embed(self, ids: npt.NDArray[np.int64], half: bool = False, simdgroups: int = 2) -> FloatOrHalf:
        y = np.empty((len(ids), self.linear.attributes.in_features), np.float16 if half else np.float32)
        buffers = {
            "kEmbeddingIds": ids,
            "kEmbeddingWeight": self.linear.weight,
            "kEmbeddingScale": self.linear.scale,
            "kEmbeddingY": y,
        }
        settings = {
            "Simdgroups": simdgroups,
            "Half": half,
            "Bits": self.linear.attributes.grid.bits,
            "ScaleKind": self.scale_kind(),
        }
        self.device.run("embedding", self.arguments(len(ids)), settings, buffers, (len(ids), 1, 1), ("kEmbeddingY",))
        return y

    def scale_kind(self) -> int:
        if self.linear.attributes.grid.group_size:
            return 2
        return int(self.linear.scale.size > 1)
