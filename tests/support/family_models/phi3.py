from __future__ import annotations

from family_models._model import FamilyModel
from family_models.llama import BASE

PHI3 = BASE | {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "pad_token_id": 0}

PARTIAL = {
    "hidden_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "partial_rotary_factor": 0.75,
    "tie_word_embeddings": True,
}
#: Beyond their original context of 128 positions.
LONG = {
    "max_position_embeddings": 512,
    "original_max_position_embeddings": 128,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0 + 0.05 * index for index in range(8)],
        "long_factor": [1.0 + 0.6 * index for index in range(8)],
    },
}

MODELS = {
    "phi3": FamilyModel({key: value for key, value in PHI3.items() if key != "num_key_value_heads"}),
    "phi3_window": FamilyModel(PHI3 | {"sliding_window": 64, "num_key_value_heads": 1}),
    "phi3_partial": FamilyModel(PHI3 | PARTIAL),
    "phi3_short": FamilyModel(PHI3 | LONG, prompt_lengths=(1, 7, 128)),
    "phi3_long": FamilyModel(PHI3 | LONG, context=512, prompt_lengths=(129, 150, 200)),
    "phi3_long_partial": FamilyModel(
        PHI3
        | PARTIAL
        | LONG
        | {
            "sliding_window": 262144,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0] * 24,
                "long_factor": [1.0 + 0.3 * index for index in range(24)],
            },
        },
        context=512,
        prompt_lengths=(129, 150, 200),
    ),
}
