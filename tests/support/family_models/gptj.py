from __future__ import annotations

from family_models._model import FamilyModel

BASE: dict[str, object] = {
    "architectures": ["GPTJForCausalLM"],
    "model_type": "gptj",
    "n_embd": 128,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 256,
    "rotary_dim": 16,
    "vocab_size": 515,
}


def gptj(**changes: object) -> FamilyModel:
    return FamilyModel(BASE | changes, embeddings=("wte",))


MODELS = {
    "gptj": gptj(n_inner=None),
    "gptj_options": gptj(
        n_head=2, rotary_dim=24, n_inner=96, activation_function="gelu", layer_norm_epsilon=1e-3, n_layer=3
    ),
    # 6 of 10 features of a head.
    "gptj_odd_heads": gptj(n_embd=60, n_head=6, rotary_dim=6),
}
