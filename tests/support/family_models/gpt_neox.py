from __future__ import annotations

from family_models._model import FamilyModel

BASE: dict[str, object] = {
    "architectures": ["GPTNeoXForCausalLM"],
    "model_type": "gpt_neox",
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 515,
    "max_position_embeddings": 256,
}


def gpt_neox(**changes: object) -> FamilyModel:
    return FamilyModel(BASE | changes, embeddings=("embed_in",))


MODELS = {
    # Of 64 features a head 16 are rotated, as in the Pythia models.
    "gpt_neox": gpt_neox(),
    # 24 of 96, as in gpt-neox-20b.
    "gpt_neox_20b": gpt_neox(hidden_size=192, hidden_act="gelu_fast", use_parallel_residual=True, rotary_pct=0.25),
    # 8 of 32, one block after the other.
    "gpt_neox_sequential": gpt_neox(
        num_attention_heads=4,
        use_parallel_residual=False,
        attention_bias=False,
        rotary_emb_base=500,
        hidden_act="relu",
        layer_norm_eps=1e-3,
    ),
    # 20 of 20: neither is a multiple of anything that is wanted.
    "gpt_neox_whole": gpt_neox(
        hidden_size=60, num_attention_heads=3, rotary_pct=1.0, rope_scaling={"type": "linear", "factor": 2.0}
    ),
}
