from __future__ import annotations

from family_models._model import FamilyModel
from family_models.llama import BASE

SMOLLM3 = BASE | {
    "architectures": ["SmolLM3ForCausalLM"],
    "model_type": "smollm3",
    "num_hidden_layers": 4,
    "pad_token_id": 0,
}

MODELS = {
    # Layer 3 has no positions, by default; theta 2,000,000 and tied.
    "smollm3": FamilyModel({key: value for key, value in SMOLLM3.items() if key != "tie_word_embeddings"}),
    "smollm3_window": FamilyModel(
        SMOLLM3
        | {
            "no_rope_layers": [1, 0, 1, 0],
            "use_sliding_window": True,
            "sliding_window": 64,
            "attention_bias": True,
            "mlp_bias": True,
            "num_key_value_heads": 1,
        }
    ),
    "smollm3_layer_types": FamilyModel(
        SMOLLM3
        | {
            "no_rope_layer_interval": 2,
            "use_sliding_window": True,
            "sliding_window": 64,
            "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
            "num_key_value_heads": None,
            "rope_theta": 5e6,
            "rope_scaling": {"type": "linear", "factor": 3.0},
        }
    ),
}
