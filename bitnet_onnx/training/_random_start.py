"""A decoder that nobody has trained yet: its configuration, its tokenizer, its random weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from bitnet_onnx.converters._config import Config
from bitnet_onnx.converters.checkpoints._files import read_small
from bitnet_onnx.converters.checkpoints._tokenizer_check import check_foreign_tokenizer
from bitnet_onnx.converters.checkpoints.huggingface import directory_tokenizer
from bitnet_onnx.converters.model import describe
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.errors import CheckpointError, InputError
from bitnet_onnx.json_input import load_object, shown
from bitnet_onnx.quantized import FloatArray

_WHERE: Final = "model.architecture"
#: Fields that change no arithmetic, and that transformers or this module reads.
_INFORMATION: Final = frozenset(
    {"architectures", "bos_token_id", "eos_token_id", "initializer_range", "model_type", "pad_token_id"}
)
_TOKENS: Final = ("bos_token", "eos_token", "pad_token")
_DEVIATION: Final = 0.02
_MAX_TOKENIZER: Final = 40_000_000


def architecture(fields: Mapping[str, object]) -> Config:
    """The fields of a config.json out of a training configuration, none of them unknown.

    Raises:
        InputError: a field does nothing, or one is missing that a random start cannot do without.
        CheckpointError, UnsupportedError: as for any config.json.
    """
    for name in ("model_type", "vocab_size"):
        if fields.get(name) is None:
            raise InputError(f"{_WHERE}.{name} is missing: a random start needs it")
    if "quantization_config" in fields:
        raise InputError(f"{_WHERE}.quantization_config: model.weights says what is trained; leave it out")
    config = Config(fields, _WHERE)
    try:
        describe(config)
    except InputError as error:
        # Of other configurations it says config.json, or nothing.
        text = str(error).removeprefix("config.json: ").removeprefix(f"{_WHERE}: ")
        raise type(error)(text if text.startswith(_WHERE) else f"{_WHERE}: {text}") from error
    for name in fields:
        if name not in _INFORMATION and not _is_read(fields, name):
            raise InputError(f"{_WHERE}.{shown(name)[1:-1]}: no {fields['model_type']} model has this field")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if name in config and config.count(name) >= config.integer("vocab_size"):
            raise InputError(f"{_WHERE}.{name} is {fields[name]}: expected less than vocab_size")
    config.strings("architectures")
    config.number("initializer_range", _DEVIATION)
    return config


def _is_read(fields: Mapping[str, object], name: str) -> bool:
    """Whether a field matters: something that is no value of any field leads to an error then."""
    try:
        describe(Config({**fields, name: object()}, _WHERE))
    except (InputError, TypeError):
        return True
    return False


def given_tokenizer(path: Path, vocab_size: int) -> Mapping[str, bytes]:
    """The files of a tokenizer: a tokenizer.json, or a directory that has one.

    Raises:
        InputError: there is none.
        CheckpointError: it is broken, or has ids of `vocab_size` and more.
    """
    if path.is_dir():
        return directory_tokenizer(path, vocab_size).files
    try:
        data = read_small(path.parent, path.name, max_bytes=_MAX_TOKENIZER)
    except CheckpointError as error:
        raise InputError(f"model.tokenizer: {error}") from error
    if data is None:
        raise InputError(f"model.tokenizer: {path}: there is no such file or directory")
    check_foreign_tokenizer(data, str(path), vocab_size)
    return {"tokenizer.json": data}


def token_ids(tokenizer: Mapping[str, bytes]) -> dict[str, int]:
    """`bos_token_id` and so on, as far as tokenizer_config.json names such tokens."""
    if "tokenizer_config.json" not in tokenizer:
        return {}
    described, document = (
        load_object(tokenizer[name], name, max_bytes=len(tokenizer[name]), error=CheckpointError)
        for name in ("tokenizer_config.json", "tokenizer.json")
    )
    added = document.get("added_tokens")
    ids = {
        token["content"]: token["id"]
        for token in (added if isinstance(added, list) else [])
        if isinstance(token, dict) and isinstance(token.get("content"), str) and type(token.get("id")) is int
    }
    found: dict[str, int] = {}
    for name in _TOKENS:
        token = described.get(name)
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str) and content in ids:
            found[f"{name}_id"] = ids[content]
    return found


def with_token_ids(config: Mapping[str, object], tokenizer: Mapping[str, bytes]) -> dict[str, object]:
    """config.json with the ids of the tokenizer, where it names none itself."""
    result = json.loads(json.dumps(dict(config)))
    for name, token in token_ids(tokenizer).items():
        result.setdefault(name, token)
    return dict(result)


@dataclass(frozen=True, slots=True)
class RandomTensors:
    """Weights as GPT-2 and its successors draw them.

    Matrices are normal; those that lead back to the residual stream are scaled by `1 / sqrt(2 * layers)`, so that its
    variance does not grow with depth (Radford et al., 2019). Norms are 1, biases 0. A tensor's values follow from the
    seed and its name alone.

    Attributes:
        spec: of the decoder.
        seed: not negative.
        deviation: standard deviation of the matrices.
    """

    spec: DecoderSpec
    seed: int
    deviation: float = _DEVIATION

    @classmethod
    def of(cls, config: Config, spec: DecoderSpec, seed: int) -> RandomTensors:
        """With the deviation that a configuration names (`initializer_range`)."""
        return cls(spec, seed, config.number("initializer_range", _DEVIATION))

    def read_into(self, role: str, target: FloatArray) -> None:
        """Draw the tensor `role` into a contiguous float32 array of its shape."""
        if target.ndim == 1:
            target.fill(1 if role.endswith(".weight") else 0)
            return
        scale = self.deviation
        if role.endswith((".o_proj.weight", ".down_proj.weight")):
            scale /= math.sqrt(2 * self.spec.num_hidden_layers)
        np.random.default_rng([self.seed, *role.encode()]).standard_normal(dtype=np.float32, out=target)
        target *= np.float32(scale)
