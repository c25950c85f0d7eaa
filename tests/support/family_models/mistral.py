from __future__ import annotations

from family_models._model import FamilyModel
from family_models.llama import BASE

MISTRAL = BASE | {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}

MODELS = {
    "mistral_window": FamilyModel(MISTRAL | {"sliding_window": 64, "rope_theta": 1e6}),
    "mistral_full": FamilyModel(
        MISTRAL | {"sliding_window": None, "head_dim": 32, "num_key_value_heads": 1, "tie_word_embeddings": True}
    ),
    "mistral_mha": FamilyModel(MISTRAL | {"sliding_window": 17, "num_key_value_heads": 4}),
}
