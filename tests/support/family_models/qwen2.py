from __future__ import annotations

from family_models._model import FamilyModel
from family_models.llama import BASE

QWEN2 = BASE | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rope_theta": 1e6}

MODELS = {
    "qwen2": FamilyModel(
        QWEN2 | {"use_sliding_window": False, "sliding_window": 64, "max_window_layers": 0, "tie_word_embeddings": True}
    ),
    "qwen2_upper_window": FamilyModel(
        QWEN2
        | {"num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}
        | {"num_key_value_heads": None}
    ),
    "qwen2_all_windows": FamilyModel(
        QWEN2 | {"use_sliding_window": True, "sliding_window": 33, "max_window_layers": 0, "num_key_value_heads": 1}
    ),
    "qwen2_layer_types": FamilyModel(
        QWEN2
        | {
            "num_hidden_layers": 3,
            "use_sliding_window": True,
            "sliding_window": 64,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "max_position_embeddings": 256,
            "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        }
    ),
}
