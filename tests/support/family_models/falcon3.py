from __future__ import annotations

from family_models._model import FamilyModel
from family_models.llama import BASE

#: Falcon3 is a Llama with heads of 256; its ternary releases say `is_bitnet_config`.
MODELS = {
    "falcon3": FamilyModel(
        BASE
        | {
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "rope_theta": 1000042,
            "is_bitnet_config": True,
        }
    ),
}
