"""A configuration to begin with."""

from __future__ import annotations

from typing import Final

#: Of a small model from a random start; a comment tells how a checkpoint takes its place.
EXAMPLE: Final = """\
# bitnet-onnx train run.toml; paths begin at this file's folder, docs/training.md has all settings.
output = "runs/first"
seed = 1

# From a random start: 5 million weights and a tokenizer of its own.
# From a checkpoint: source = "DIRECTORY, PACKAGE or NAME OF THE ZOO" in the place of [model.architecture].
[model]
sub_norms = true              # BitNet's norms: ternary models learn better with them

[model.architecture]
model_type = "llama"
vocab_size = 4096
hidden_size = 256
intermediate_size = 704
num_hidden_layers = 6
num_attention_heads = 4
num_key_value_heads = 2
max_position_embeddings = 512
tie_word_embeddings = true

[data]
train = ["texts.txt"]         # .txt, or .jsonl with text or messages
holdout = 0.05                # share that is kept for validation
length = 256                  # tokens of a window

[loop]
steps = 2000
batch = 16                    # windows of a step
evaluate_every = 200
checkpoint_every = 200
measure_every = 200           # what quantization does to each layer

[optimizer]
learning_rate = 2e-3          # 5e-4 from a checkpoint
warmup = 100

# From a checkpoint: quantize little by little, and let the model as it was teach.
# [quantization]
# strength = { start = 0.0, end = 1.0, steps = 1000, curve = "cosine" }
#
# [losses]
# cross_entropy = 1.0
# distillation = 1.0
"""
