from __future__ import annotations

from family_models._model import FamilyModel
from family_models.llama import BASE

QWEN3 = BASE | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "rope_theta": 1e6}

MODELS = {
    "qwen3": FamilyModel(QWEN3 | {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3_default_heads": FamilyModel(QWEN3 | {"num_attention_heads": 2, "num_key_value_heads": 1}),
    "qwen3_bias_window": FamilyModel(
        QWEN3
        | {
            "head_dim": 16,
            "num_key_value_heads": None,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 64,
            "max_window_layers": 1,
        }
    ),
}
