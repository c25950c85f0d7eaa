from __future__ import annotations

from family_models._model import FamilyModel
from family_models.llama import BASE

OLMO2 = BASE | {"architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "pad_token_id": 0, "rope_theta": 5e5}

MODELS = {
    "olmo2": FamilyModel(
        {key: value for key, value in OLMO2.items() if key not in {"num_key_value_heads", "rms_norm_eps"}}
    ),
    "olmo2_bias": FamilyModel(
        OLMO2 | {"num_key_value_heads": 1, "head_dim": 32, "attention_bias": True, "tie_word_embeddings": True}
    ),
}
