from __future__ import annotations

from family_models._model import FamilyModel

BASE: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 515,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


def scaled(limit: int, **scaling: object) -> FamilyModel:
    return FamilyModel(BASE | {"max_position_embeddings": limit, "rope_theta": 10000.0, "rope_scaling": scaling})


MODELS = {
    "llama_linear": scaled(512, type="linear", factor=4.0),
    "llama_yarn": scaled(256, rope_type="yarn", factor=4.0, original_max_position_embeddings=64),
    "llama_yarn_options": scaled(
        256,
        rope_type="yarn",
        factor=8.0,
        original_max_position_embeddings=32,
        beta_fast=16.0,
        beta_slow=2.0,
        mscale=0.7,
        mscale_all_dim=1.3,
        truncate=False,
    ),
    "llama_dynamic": FamilyModel(
        BASE | {"max_position_embeddings": 64, "rope_scaling": {"type": "dynamic", "factor": 4.0}}, one_by_one=True
    ),
    # The factors of a context of 256, whole: tokens one by one would begin with the short ones in the reference.
    "llama_longrope": FamilyModel(
        BASE
        | {
            "max_position_embeddings": 256,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 20000.0,
                "original_max_position_embeddings": 64,
                "factor": 3.0,
                "short_factor": [1.0] * 8,
                "long_factor": [1.0, 1.1, 1.3, 1.7, 2.5, 4.0, 6.0, 8.0],
            },
        },
        context=256,
        prompt_lengths=(65, 100, 200),
    ),
    # New style, tied, as many key heads as query heads, and a field that only says how the weights were trained.
    "llama_parameters": FamilyModel(
        {key: value for key, value in BASE.items() if key != "num_key_value_heads"}
        | {
            "head_dim": None,
            "pretraining_tp": 2,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        }
    ),
    "llama_wide_heads": FamilyModel(
        BASE | {"head_dim": 32, "num_key_value_heads": 1, "attention_bias": True, "hidden_act": "gelu"}
    ),
    "llama_relu": FamilyModel(BASE | {"hidden_act": "relu", "mlp_bias": True, "attention_bias": True}),
}
