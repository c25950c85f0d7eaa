from __future__ import annotations

from family_models._model import FamilyModel
from family_models.gemma import gemma_model


def gemma3(**changes: object) -> FamilyModel:
    small: dict[str, object] = {"sliding_window": 64, "query_pre_attn_scalar": 24}
    return gemma_model("gemma3_text", "Gemma3ForCausalLM", **small | changes)


MODELS = {
    "gemma3_text": gemma3(
        sliding_window_pattern=2,
        rope_theta=1e5,
        rope_local_base_freq=500.0,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
    ),
    "gemma3_text_layers": gemma3(
        num_hidden_layers=7,
        num_key_value_heads=4,
        final_logit_softcapping=4.0,
        sliding_window=33,
        rms_norm_eps=1e-5,
    ),
    "gemma3_text_types": gemma3(
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 20000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
        },
        attention_bias=True,
        tie_word_embeddings=False,
        hidden_activation="silu",
    ),
}
