"""A training run that takes a second: a random Llama on a few words."""

from __future__ import annotations

import random
from pathlib import Path

_WORDS = "in the beginning god created heaven and earth light darkness water day night sea land tree fruit"


def write_config(folder: Path, *, steps: int = 12, weights: str = "ternary") -> Path:
    """A configuration and its text; float weights come with float activations."""
    words = random.Random(0)
    text = ". ".join(" ".join(words.choice(_WORDS.split()) for _ in range(8)) for _ in range(600))
    (folder / "words.txt").write_text(text)
    path = folder / "run.toml"
    path.write_text(
        f"""
output = "run"
[model]
sub_norms = true
weights = "{weights}"
activation_bits = {8 if weights == "ternary" else 0}
[model.architecture]
model_type = "llama"
vocab_size = 288
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
max_position_embeddings = 64
tie_word_embeddings = true
[data]
train = ["words.txt"]
holdout = 0.1
length = 32
[loop]
steps = {steps}
batch = 4
evaluate_every = 4
checkpoint_every = 4
measure_every = 4
[optimizer]
learning_rate = 1e-2
warmup = 2
[engine]
threads = 1
"""
    )
    return path
