from __future__ import annotations

from family_models._model import FamilyModel

BASE: dict[str, object] = {
    "architectures": ["OPTForCausalLM"],
    "model_type": "opt",
    "hidden_size": 64,
    "ffn_dim": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "vocab_size": 515,
}


def opt(**changes: object) -> FamilyModel:
    return FamilyModel(BASE | changes, embedding_size=0.25)


MODELS = {
    "opt": opt(),
    "opt_350m": opt(do_layer_norm_before=False, word_embed_proj_dim=48),
    "opt_options": opt(
        enable_bias=False,
        layer_norm_elementwise_affine=False,
        activation_function="gelu",
        num_attention_heads=8,
        word_embed_proj_dim=32,
    ),
    "opt_no_final_norm": opt(_remove_final_layer_norm=True, tie_word_embeddings=False),
}
