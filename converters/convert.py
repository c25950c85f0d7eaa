"""A checkpoint into an ONNX package."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import onnx_ir as ir

from bitnet_onnx.converters._roles import CheckpointTensors
from bitnet_onnx.converters.checkpoints import Checkpoint, open_checkpoint
from bitnet_onnx.converters.families import Config, find
from bitnet_onnx.converters.onnx._data_file import DataFile
from bitnet_onnx.converters.onnx._directory import new_directory
from bitnet_onnx.converters.onnx._emitter import Emitter
from bitnet_onnx.converters.onnx._genai import genai_config
from bitnet_onnx.converters.onnx._linears import LayerRecord
from bitnet_onnx.converters.onnx.bodies import Fallback
from bitnet_onnx.converters.onnx.decoder import DecoderEmitter
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.errors import CheckpointError, PackageError
from bitnet_onnx.package_format import (
    CONFIG,
    FORMAT_VERSION,
    GENAI_CONFIG,
    GENERATION_CONFIG,
    MANIFEST,
    MODEL,
    MODEL_DATA,
    OPERATOR_DOMAIN,
    OPERATOR_VERSION,
    TOKENIZER_CONFIG,
)
from bitnet_onnx.policy import Policy

#: onnxruntime-genai allocates the cache for this many positions unless told otherwise.
_GENAI_LENGTH: Final = 2048

_TOKEN_IDS: Final = ("bos_token_id", "eos_token_id", "pad_token_id")

_log = logging.getLogger(__name__)

#: Called after each matrix: how many are done, how many there are, and what became of the last.
Progress = Callable[[int, int, LayerRecord], None]


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion wrote.

    Attributes:
        path: the package.
        spec: the decoder.
        layers: every matrix with its precision and error.
        graph_bytes: size of `model.onnx`.
        data_bytes: size of `model.onnx.data`.
    """

    path: Path
    spec: DecoderSpec
    layers: tuple[LayerRecord, ...]
    graph_bytes: int
    data_bytes: int

    @property
    def bits_per_weight(self) -> float:
        """Mean over all quantized or float matrices, the head included, scales counted."""
        return bits_per_weight(self.layers)


def bits_per_weight(layers: tuple[LayerRecord, ...]) -> float:
    """Mean bits of a weight over matrices of different sizes."""
    weights = sum(layer.shape[0] * layer.shape[1] for layer in layers)
    return sum(layer.shape[0] * layer.shape[1] * layer.bits_per_weight for layer in layers) / max(weights, 1)


def convert(
    source: str | Path,
    output: str | Path,
    *,
    policy: Policy | None = None,
    fallback: Fallback = Fallback.FAST,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Convert a checkpoint into an ONNX package directory.

    Args:
        source: a Hugging Face directory or a GGUF file.
        output: the directory to create; it appears only when it is complete.
        policy: the precision of each layer; the default keeps ternary matrices and makes others int4, the head int8.
        fallback: the function bodies that runtimes without the operator library execute: `fast` or `exact`.
        overwrite: replace an existing package.
        progress: called after each matrix.

    Returns:
        What was written.

    Raises:
        CheckpointError: the checkpoint is broken or contradicts itself.
        UnsupportedError: the checkpoint is of a kind that is not implemented.
        PackageError: the output exists or cannot be written.
    """
    policy = policy or Policy()
    if Path(source).resolve().is_relative_to(Path(output).resolve()):
        raise PackageError(f"{output} holds the checkpoint {source}: choose another output")
    with new_directory(Path(output), overwrite=overwrite) as work, open_checkpoint(Path(source)) as checkpoint:
        config = Config(checkpoint.config)
        family = find(config)
        spec = family.spec(config)
        tensors = CheckpointTensors(checkpoint, family, spec)
        tokenizer = checkpoint.tokenizer()
        generation = _generation_config(checkpoint, spec)
        layers: list[LayerRecord] = []
        total = sum(1 for role, shape in spec.tensors() if len(shape) == 2)

        def record(layer: LayerRecord) -> None:
            layers.append(layer)
            _log.debug("%s: %s, relative error %.4f", layer.role, layer.weights, layer.relative_error)
            if progress is not None:
                progress(len(layers), total, layer)

        with DataFile(work / MODEL_DATA) as data:
            emitter = Emitter(data, fallback)
            DecoderEmitter(spec, tensors, policy, emitter, record).run()
        ir.save(emitter.model(tool_version()), work / MODEL)
        # The runtimes read both files; a tokenizer that is complete in the first may come without the second.
        for name, content in {TOKENIZER_CONFIG: b"{}\n", **tokenizer.files}.items():
            (work / name).write_bytes(content)
        _write_json(work / CONFIG, checkpoint.config)
        _write_json(work / GENERATION_CONFIG, generation)
        max_length = min(spec.context_length, _GENAI_LENGTH)
        _write_json(work / GENAI_CONFIG, genai_config(spec, generation, max_length=max_length))
        _write_json(work / MANIFEST, _manifest(checkpoint, spec, tuple(layers), fallback))
        sizes = [(work / name).stat().st_size for name in (MODEL, MODEL_DATA)]
    return Conversion(Path(output), spec, tuple(layers), *sizes)


def _generation_config(checkpoint: Checkpoint, spec: DecoderSpec) -> Mapping[str, object]:
    """generation_config.json; where there is none, the token ids of config.json stand for it, as in transformers."""
    config = checkpoint.generation_config or {
        name: checkpoint.config[name] for name in _TOKEN_IDS if checkpoint.config.get(name) is not None
    }
    eos = config.get("eos_token_id")
    for token in [] if eos is None else eos if isinstance(eos, list) else [eos]:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < spec.vocab_size:
            raise CheckpointError(
                f"{checkpoint.path.name}: eos_token_id holds {token!r:.40}: "
                f"expected a token id from 0 to {spec.vocab_size - 1}"
            )
    return config


def tool_version() -> str:
    """This package's version, as installed."""
    try:
        return version("bitnet-onnx")
    except PackageNotFoundError:
        return "0+unknown"


def _manifest(
    checkpoint: Checkpoint, spec: DecoderSpec, layers: tuple[LayerRecord, ...], fallback: Fallback
) -> dict[str, object]:
    return {
        "format_version": FORMAT_VERSION,
        "tool_version": tool_version(),
        "source": {"name": checkpoint.name, "format": checkpoint.format, "sha256": checkpoint.sha256()},
        "architecture": {
            "family": spec.family,
            "vocab_size": spec.vocab_size,
            "hidden_size": spec.hidden_size,
            "intermediate_size": spec.intermediate_size,
            "num_hidden_layers": spec.num_hidden_layers,
            "num_attention_heads": spec.num_attention_heads,
            "num_key_value_heads": spec.num_key_value_heads,
            "head_dim": spec.head_dim,
            "context_length": spec.context_length,
            "tie_word_embeddings": spec.tie_word_embeddings,
        },
        "operator": {"domain": OPERATOR_DOMAIN, "version": OPERATOR_VERSION, "fallback": str(fallback)},
        "summary": {
            "bits_per_weight": round(bits_per_weight(layers), 4),
            "parameters": sum(layer.shape[0] * layer.shape[1] for layer in layers),
        },
        "layers": [
            {
                "role": layer.role,
                "shape": list(layer.shape),
                "weights": str(layer.weights),
                "group_size": layer.group_size,
                "bits_per_weight": round(layer.bits_per_weight, 4),
                "relative_error": round(layer.relative_error, 6),
            }
            for layer in layers
        ],
    }


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
