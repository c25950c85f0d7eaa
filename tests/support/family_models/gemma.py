from __future__ import annotations

from dataclasses import replace

from family_models._model import FamilyModel

SIZES: dict[str, object] = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 515,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
}


def gemma_model(model_type: str, class_name: str, **changes: object) -> FamilyModel:
    """Embeddings are multiplied with 8 and the head is tied: they deviate by 1/8."""
    config = SIZES | {"model_type": model_type, "architectures": [class_name]} | changes
    return FamilyModel(config, norms_add_one=True, embedding_size=0.125)


def gemma(**changes: object) -> FamilyModel:
    return gemma_model("gemma", "GemmaForCausalLM", **changes)


MODELS = {
    "gemma": gemma(hidden_act="gelu", num_key_value_heads=1, rope_theta=5000.0),
    "gemma_untied": replace(
        gemma(tie_word_embeddings=False, attention_bias=True, hidden_act="silu"), embeddings=("embed",)
    ),
}
