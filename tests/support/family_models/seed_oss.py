from __future__ import annotations

from family_models._model import FamilyModel
from family_models.llama import BASE

SEED_OSS = BASE | {"architectures": ["SeedOssForCausalLM"], "model_type": "seed_oss"}

MODELS = {
    # Heads of 128 by default, biases on q, k, v only.
    "seed_oss": FamilyModel(SEED_OSS | {"num_attention_heads": 2, "num_key_value_heads": 1}),
    "seed_oss_bias": FamilyModel(
        SEED_OSS
        | {"attention_bias": False, "attention_out_bias": True, "mlp_bias": True, "tie_word_embeddings": True}
        | {"head_dim": None, "num_key_value_heads": None}
    ),
}
