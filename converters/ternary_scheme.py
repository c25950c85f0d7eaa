"""`quantization_config` of config.json: how the linear layers of a BitNet checkpoint are stored.

Source: `BitNetQuantConfig`, `quantizers/quantizers_utils.py` and `integrations/bitnet.py` of transformers 5.23.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bitnet_onnx.converters._config import Config
from bitnet_onnx.converters._module_patterns import ModulePatterns
from bitnet_onnx.errors import CheckpointError, UnsupportedError

_WHERE: Final = "config.json: quantization_config"
_FIELDS: Final = frozenset(
    {
        "quant_method",
        "linear_class",
        "quantization_mode",
        "modules_to_not_convert",
        "use_rms_norm",
        "rms_norm_eps",
        "bits",  # of early converters; nothing reads it
    }
)
# What transformers keeps where the list is null and a linear layer could be meant: the output head.
_HEAD: Final = ("lm_head",)


@dataclass(frozen=True, slots=True)
class TernaryScheme:
    """A BitNet checkpoint's way to store its linear layers.

    Attributes:
        packed: codes with a `weight_scale`; otherwise dense masters.
        online: masters of which the checkpoint says that every forward rounds them: one that already is ternary is
            rounded again, which changes its scale.
        divides: the output is divided by `weight_scale` (`bitlinear`) and not multiplied with it (`autobitlinear`).
        linear_norm_epsilon: of the RMSNorm inside every linear layer, or None where there is none.
        kept: the modules that stay dense.
    """

    packed: bool
    online: bool
    divides: bool
    linear_norm_epsilon: float | None
    kept: ModulePatterns

    @property
    def linear_class(self) -> str:
        """Name of the class that transformers runs."""
        return "bitlinear" if self.divides else "autobitlinear"

    def covers(self, module: str) -> bool:
        """Whether a linear layer, such as `model.layers.0.mlp.up_proj`, is ternary."""
        return not self.kept.match(module)


def ternary_scheme(config: Config) -> TernaryScheme | None:
    """Read `quantization_config`, or return None where there is none.

    Raises:
        UnsupportedError: another quantization method, by name, or an option that is not known.
        CheckpointError: a field of a wrong type or value.
    """
    fields = config.child("quantization_config")
    if fields is None:
        if not config.boolean("is_bitnet_config", False):
            return None
        # Masters by their makers' word alone: transformers runs them as floats.
        return TernaryScheme(
            packed=False, online=False, divides=False, linear_norm_epsilon=None, kept=ModulePatterns(_HEAD, _WHERE)
        )
    method = fields.string("quant_method", "unknown")
    if method != "bitnet":
        raise UnsupportedError(
            f"config.json: quantization method {method!r:.60} is not supported (known: bitnet); "
            f"convert the unquantized checkpoint"
        )
    unknown = sorted(name for name in fields.fields if name not in _FIELDS)
    if unknown:
        raise UnsupportedError(f"{_WHERE}: field {unknown[0]!r:.60} is not known (known: {', '.join(sorted(_FIELDS))})")
    linear_class = fields.string("linear_class", "bitlinear")
    mode = fields.string("quantization_mode", "offline")
    if linear_class not in {"bitlinear", "autobitlinear"}:
        raise UnsupportedError(
            f"{_WHERE}: linear_class {linear_class!r:.60} is not supported (known: bitlinear, autobitlinear)"
        )
    if mode not in {"offline", "online"}:
        raise CheckpointError(f"{_WHERE}: quantization_mode is {mode!r:.60}: expected offline or online")
    # An empty list keeps nothing, null keeps the head.
    kept = fields.strings("modules_to_not_convert") if "modules_to_not_convert" in fields else _HEAD
    # transformers reads the mode in AutoBitLinear only: a BitLinear is always packed.
    online = linear_class == "autobitlinear" and mode == "online"
    scheme = TernaryScheme(
        packed=not online,
        online=online,
        divides=linear_class == "bitlinear",
        linear_norm_epsilon=fields.number("rms_norm_eps", 1e-6) if fields.boolean("use_rms_norm", False) else None,
        kept=ModulePatterns(kept, f"{_WHERE}: modules_to_not_convert"),
    )
    if online and scheme.covers("lm_head"):
        raise UnsupportedError(
            f"{_WHERE}: modules_to_not_convert does not name lm_head: a head that is rounded to ternary in every "
            f"forward is not supported"
        )
    return scheme
