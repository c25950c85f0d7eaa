from __future__ import annotations

from family_models._model import FamilyModel

BASE: dict[str, object] = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 256,
    "vocab_size": 515,
}


def gpt2(**changes: object) -> FamilyModel:
    return FamilyModel(
        BASE | changes, transposed=("c_attn", "c_proj", "c_fc"), embeddings=("wte", "wpe"), embedding_size=0.25
    )


MODELS = {
    "gpt2": gpt2(n_inner=None),
    "gpt2_options": gpt2(
        n_inner=96,
        n_head=8,
        activation_function="gelu",
        scale_attn_weights=False,
        tie_word_embeddings=False,
        layer_norm_epsilon=1e-3,
        reorder_and_upcast_attn=True,
    ),
    # Heads of 12 features.
    "gpt2_odd_heads": gpt2(n_embd=60, n_head=5, activation_function="relu"),
}
