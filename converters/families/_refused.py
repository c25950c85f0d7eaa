"""Fields of config.json that change what a decoder computes: a family that does not read one refuses it.

Without this a checkpoint of a relative would be converted as if the field were not there, and answer nonsense. What
only adds tensors needs no row: a tensor without a role is refused anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from bitnet_onnx.converters._config import Config
from bitnet_onnx.converters.families._family import Family
from bitnet_onnx.converters.families._layers import FULL
from bitnet_onnx.errors import UnsupportedError

#: Field -> values with which it does nothing; absent and null are always among them.
FIELDS: Final[Mapping[str, tuple[object, ...]]] = {
    # which positions are seen
    "add_cross_attention": (False,),
    "attention_chunk_size": (),
    "is_causal": (True,),
    "is_encoder_decoder": (False,),
    "layer_types": (),
    "sliding_window": (),
    "sliding_window_pattern": (1,),
    "use_bidirectional_attention": (False,),
    # positions
    "alibi": (False,),
    "no_rope_layers": (),
    "partial_rotary_factor": (1,),
    "rope_interleave": (False,),
    "rope_interleaved": (False,),
    "rotary_dim": (),
    "rotary_pct": (1,),
    "use_alibi": (False,),
    "use_mrope": (False,),
    "use_rope": (True,),
    # queries, keys and scores
    "attention_multiplier": (),
    "attn_logit_softcapping": (0,),
    "attn_temperature_tuning": (False, 0),
    "clip_qkv": (),
    "qk_layernorm": (False,),
    "qk_norm": (False,),
    "query_pre_attn_scalar": (),
    "scale_attn_by_inverse_layer_idx": (False,),
    "scale_attn_weights": (True,),
    "use_qk_norm": (False,),
    "use_qkv_bias": (False,),
    # blocks
    "mlp_layers": ([],),
    "mlp_only_layers": ([],),
    "n_routed_experts": (0,),
    "num_experts": (0,),
    "num_local_experts": (0,),
    "parallel_attn": (False,),
    "per_layer_config": ({},),
    "residual_multiplier": (1,),
    "use_parallel_residual": (False,),
    # embeddings and logits
    "embedding_multiplier": (1,),
    "final_logit_softcapping": (0,),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "scale_emb": (1,),
}

#: The same for what stands in `rope_parameters` or `rope_scaling`.
ROPE_FIELDS: Final[Mapping[str, tuple[object, ...]]] = {
    "long_mscale": (),
    "mrope_section": (),
    "partial_rotary_factor": (1,),
    "short_mscale": (),
}


def refuse_unread(config: Config, family: Family) -> None:
    """Refuse a configuration with a field that changes the arithmetic and that the family does not read.

    Raises:
        UnsupportedError: there is one, by name and value.
    """
    _refuse(config, "", FIELDS, family)
    for name in ("rope_parameters", "rope_scaling"):
        child = config.child(name)
        if child is not None:
            _refuse(child, f"{name}: ", ROPE_FIELDS, family)


def _refuse(config: Config, where: str, fields: Mapping[str, tuple[object, ...]], family: Family) -> None:
    for name, harmless in fields.items():
        if name in family.reads or name not in config:
            continue
        value = config.fields[name]
        if value not in harmless and not _does_nothing(name, value, config):
            raise UnsupportedError(
                f"config.json: {where}{name} is {_shown(value)}: it changes what the model computes, and is not "
                f"supported in {family.model_type} models"
            )


def _does_nothing(name: str, value: object, config: Config) -> bool:
    """The cases that depend on more than one value."""
    match name, value:
        case "layer_types", list():
            return all(item == FULL for item in value)
        case "no_rope_layers", list():
            return all(item == 1 for item in value)
        case "sliding_window", int():
            # Left over where a checkpoint was rewritten for another family.
            context = config.fields.get("max_position_embeddings")
            return config.fields.get("use_sliding_window") is False or (isinstance(context, int) and value >= context)
        case _:
            return False


def _shown(value: object) -> str:
    if isinstance(value, list | tuple | Mapping) and len(value) > 8:
        return f"a {type(value).__name__} of {len(value)}"
    return f"{value!r:.60}"
