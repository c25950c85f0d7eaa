from __future__ import annotations

from family_models._model import FamilyModel
from family_models.gemma import gemma_model


def gemma2(**changes: object) -> FamilyModel:
    # Small caps and windows, so that the prompt of 200 tokens feels both.
    small: dict[str, object] = {
        "sliding_window": 64,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    }
    return gemma_model("gemma2", "Gemma2ForCausalLM", **small | changes)


MODELS = {
    "gemma2": gemma2(),
    "gemma2_layer_types": gemma2(
        layer_types=["full_attention", "sliding_attention", "sliding_attention"],
        final_logit_softcapping=None,
        attn_logit_softcapping=None,
        query_pre_attn_scalar=100,
        sliding_window=17,
        hidden_activation="gelu",
        attention_bias=True,
        rope_theta=2000.0,
    ),
    "gemma2_caps": gemma2(attn_logit_softcapping=1.0, final_logit_softcapping=None, tie_word_embeddings=False),
}
