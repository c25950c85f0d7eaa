from __future__ import annotations

from family_models._model import FamilyModel

BASE: dict[str, object] = {
    "architectures": ["PhiForCausalLM"],
    "model_type": "phi",
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "vocab_size": 515,
}


def phi(**changes: object) -> FamilyModel:
    # A tied head makes logits from embeddings.
    return FamilyModel(BASE | changes, embedding_size=0.125 if changes.get("tie_word_embeddings") else 1.0)


MODELS = {
    # 16 of 32 features of a head are rotated.
    "phi": phi(),
    # 32 of 80, as in phi-2.
    "phi_2": phi(hidden_size=160, num_attention_heads=2, partial_rotary_factor=0.4, num_key_value_heads=1),
    # 8 of 32, behind norms of each head; then 8 of 20.
    "phi_norms": phi(qk_layernorm=True, partial_rotary_factor=0.25, rope_theta=500.0, hidden_act="gelu"),
    "phi_norms_odd_heads": phi(
        hidden_size=60,
        num_attention_heads=3,
        qk_layernorm=True,
        partial_rotary_factor=0.4,
        layer_norm_eps=1e-3,
        tie_word_embeddings=True,
    ),
}
