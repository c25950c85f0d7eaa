"""`quantization_config` of config.json: how the linear layers of a BitNet checkpoint are stored.

Source: `BitNetQuantConfig` and `integrations/bitnet.py` of transformers 5.23.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bitnet_onnx.converters._config import Config
from bitnet_onnx.errors import CheckpointError, UnsupportedError

_FIELDS: Final = frozenset(
    {"quant_method", "linear_class", "quantization_mode", "modules_to_not_convert", "use_rms_norm", "rms_norm_eps"}
)


@dataclass(frozen=True, slots=True)
class TernaryScheme:
    """A BitNet checkpoint's way to store its linear layers.

    Attributes:
        packed: U8 with four codes a byte and a `weight_scale`; otherwise dense masters, rounded in every forward.
        divides: the output is divided by `weight_scale` (`bitlinear`) and not multiplied with it (`autobitlinear`).
        linear_norm_epsilon: of the RMSNorm inside every linear layer, or None where there is none.
        kept: names or regular expressions of modules that stay dense.
    """

    packed: bool
    divides: bool
    linear_norm_epsilon: float | None
    kept: tuple[str, ...]

    def covers(self, module: str) -> bool:
        """Whether a linear layer, such as `model.layers.0.mlp.up_proj`, is ternary."""
        parts = module.split(".")
        return not any(
            module == name or name in parts or module.startswith(f"{name}.") or f".{name}." in f".{module}."
            for name in self.kept
        )


def ternary_scheme(config: Config) -> TernaryScheme | None:
    """Read `quantization_config`, or return None where there is none.

    Raises:
        UnsupportedError: another quantization method, by name, or an option that is not known.
        CheckpointError: a field of a wrong type or value.
    """
    fields = config.child("quantization_config")
    if fields is None:
        return None
    method = fields.string("quant_method", "unknown")
    if method != "bitnet":
        raise UnsupportedError(
            f"config.json: quantization method {method!r:.60} is not supported (known: bitnet); "
            f"convert the unquantized checkpoint"
        )
    linear_class = fields.string("linear_class", "bitlinear")
    mode = fields.string("quantization_mode", "offline")
    if linear_class not in {"bitlinear", "autobitlinear"}:
        raise UnsupportedError(
            f"config.json: quantization_config: linear_class {linear_class!r:.60} is not supported "
            f"(known: bitlinear, autobitlinear)"
        )
    if mode not in {"offline", "online"}:
        raise CheckpointError(
            f"config.json: quantization_config: quantization_mode is {mode!r:.60}: expected offline or online"
        )
    # transformers reads the mode in AutoBitLinear only: a BitLinear is always packed.
    packed = linear_class == "bitlinear" or mode == "offline"
    uses_norm = fields.boolean("use_rms_norm", False)
    return TernaryScheme(
        packed=packed,
        divides=linear_class == "bitlinear",
        linear_norm_epsilon=fields.number("rms_norm_eps", 1e-6) if uses_norm else None,
        kept=fields.strings("modules_to_not_convert") or ("lm_head",),
    )
