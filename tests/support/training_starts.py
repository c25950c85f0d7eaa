"""Starts of training runs that are made in no time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

import numpy as np
from tiny_models import tokenizer

from bitnet_onnx.training.parameters import ParameterStore
from bitnet_onnx.training.settings import ModelSettings
from bitnet_onnx.training.start import Start, open_start

LLAMA: Mapping[str, object] = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def trained_tokenizer(_: Iterable[str], vocab_size: int) -> Mapping[str, bytes]:
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    return {
        "tokenizer.json": tokenizer(vocab_size).to_str().encode(),
        "tokenizer_config.json": json.dumps(described).encode(),
    }


def random_start(fields: Mapping[str, object] = LLAMA, *, seed: int = 0, sub_norms: bool = False) -> Start:
    settings = ModelSettings(architecture=fields, sub_norms=sub_norms)
    with open_start(settings, seed=seed, texts=["text"], train_tokenizer=trained_tokenizer) as start:
        return start


def filled(start: Start) -> ParameterStore:
    store = ParameterStore(dict(start.spec.tensors()), decayed=start.decayed)
    start.fill(store)
    return store


def trained_store(start: Start) -> ParameterStore:
    """As after some steps: every tensor has moved."""
    store = filled(start)
    rng = np.random.default_rng(3)
    for role in store:
        value = store.value(role)
        value += rng.standard_normal(value.shape, np.float32) * np.float32(0.01)
    return store
