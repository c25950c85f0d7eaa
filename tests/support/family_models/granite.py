from __future__ import annotations

from family_models._model import FamilyModel
from family_models.llama import BASE

GRANITE = BASE | {"architectures": ["GraniteForCausalLM"], "model_type": "granite", "pad_token_id": 0}

MODELS = {
    "granite": FamilyModel(
        GRANITE
        | {
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.0625,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
            "tie_word_embeddings": True,
        }
    ),
    "granite_defaults": FamilyModel(GRANITE | {"num_key_value_heads": None}),
    "granite_bias": FamilyModel(
        GRANITE
        | {
            "attention_bias": True,
            "mlp_bias": True,
            "embedding_multiplier": 0.3,
            "attention_multiplier": 0.5,
            "residual_multiplier": 3,
            "logits_scaling": 0.25,
            "num_key_value_heads": 1,
            "head_dim": 32,
        }
    ),
}
