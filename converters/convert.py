"""A checkpoint into an ONNX package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bitnet_onnx.converters._roles import CheckpointTensors
from bitnet_onnx.converters.checkpoints import Checkpoint, open_checkpoint
from bitnet_onnx.converters.families import Config, find
from bitnet_onnx.converters.onnx._directory import new_directory
from bitnet_onnx.converters.onnx._linears import LayerRecord
from bitnet_onnx.converters.onnx.bodies import Fallback
from bitnet_onnx.converters.onnx.package import PackageSource, Progress, bits_per_weight, write_package
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.errors import CheckpointError, PackageError
from bitnet_onnx.package_format import MODEL, MODEL_DATA
from bitnet_onnx.policy import Policy

_TOKEN_IDS: Final = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion wrote.

    Attributes:
        path: the package.
        spec: the decoder.
        layers: every matrix with its precision and error.
        graph_bytes: size of `model.onnx`.
        data_bytes: size of `model.onnx.data`.
        trained_ternary: the model was trained with ternary weights.
    """

    path: Path
    spec: DecoderSpec
    layers: tuple[LayerRecord, ...]
    graph_bytes: int
    data_bytes: int
    trained_ternary: bool

    @property
    def bits_per_weight(self) -> float:
        """Mean over all quantized or float matrices, the head included, scales counted."""
        return bits_per_weight(self.layers)


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
        policy: the precision of each layer; the default keeps ternary matrices and makes others int4 (ternary
            by absmean where the family was trained for it), the head int8.
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
    if Path(source).resolve().is_relative_to(Path(output).resolve()):
        raise PackageError(f"{output} holds the checkpoint {source}: choose another output")
    with new_directory(Path(output), overwrite=overwrite) as work, open_checkpoint(Path(source)) as checkpoint:
        config = Config(checkpoint.config)
        family = find(config)
        spec = family.spec(config)
        tensors = CheckpointTensors(checkpoint, family, spec)
        contents = PackageSource(
            name=checkpoint.name,
            format=checkpoint.format,
            sha256=checkpoint.sha256(),
            config=checkpoint.config,
            generation_config=_generation_config(checkpoint, spec),
            tokenizer=checkpoint.tokenizer().files,
        )
        policy = policy or Policy()
        if family.trained_ternary:
            policy = policy.for_ternary_masters()
        layers = write_package(work, spec, tensors, contents, policy=policy, fallback=fallback, progress=progress)
        graph_bytes, data_bytes = ((work / name).stat().st_size for name in (MODEL, MODEL_DATA))
    return Conversion(Path(output), spec, layers, graph_bytes, data_bytes, family.trained_ternary)


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
