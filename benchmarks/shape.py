"""How fast is a model of a given shape, whose weights one need not have?"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from bitnet_onnx.benchmarks import model
from bitnet_onnx.benchmarks._process import llama_version
from bitnet_onnx.benchmarks._synthetic import write_random_package
from bitnet_onnx.benchmarks._synthetic_gguf import write_gguf
from bitnet_onnx.benchmarks.model import ModelSettings, Progress
from bitnet_onnx.benchmarks.results import Report
from bitnet_onnx.converters.onnx.package import tool_version
from bitnet_onnx.decoder import Attention, DecoderSpec, Rotary
from bitnet_onnx.package_format import MANIFEST

_PEER = "llama.cpp TQ2_0"


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model's sizes.

    Attributes:
        spec: what is emitted.
        caveat: how that differs from the model it is named after, or empty.
    """

    spec: DecoderSpec
    caveat: str = ""


_BITNET_2B4T = ModelShape(
    DecoderSpec(
        family="bitnet",
        vocab_size=128256,
        hidden_size=2560,
        intermediate_size=6912,
        num_hidden_layers=30,
        num_attention_heads=20,
        num_key_value_heads=5,
        head_dim=128,
        context_length=4096,
        norm_epsilon=1e-5,
        activation="relu2",
        attention=(Attention(Rotary(theta=500000.0, dim=128)),),
        tie_word_embeddings=True,
        attention_sub_norm=True,
        mlp_sub_norm=True,
    ),
    caveat="llama.cpp before it read `hidden_activation` applies silu instead of relu², one pass of the same size.",
)
_TINY = ModelShape(
    DecoderSpec(
        family="bitnet",
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        context_length=128,
        norm_epsilon=1e-5,
        activation="relu2",
        attention=(Attention(Rotary(theta=10000.0, dim=64)),),
        tie_word_embeddings=True,
        attention_sub_norm=True,
        mlp_sub_norm=True,
    )
)
SHAPES = {"bitnet-2b4t": _BITNET_2B4T, "tiny": _TINY}


def measure(
    name: str,
    cache: Path,
    settings: ModelSettings,
    *,
    rebuild: bool = False,
    progress: Progress = lambda _: None,
) -> Report:
    """Make the package and the GGUF file where they are not there yet, and measure them as `model` does.

    Args:
        name: a key of `SHAPES`.
        cache: folder that keeps what was made.
        settings: of `model`; `gguf` is set here.
        rebuild: make the files again, as after a change of the emitter.
        progress: called with each step.

    Raises:
        PackageError: the package cannot be written.
        BitnetOnnxError: as `model.measure`.
    """
    shape = SHAPES[name]
    notes = [f"The weights are random ternary, in the sizes of {name}."]
    if shape.caveat:
        notes.append(f"The shape is {name}'s but for this: {shape.caveat}")
    # Another spec or another version is another file.
    digest = hashlib.sha256(f"{shape.spec} {tool_version()}".encode()).hexdigest()[:12]
    package, peer = cache / f"{name}-{digest}", cache / f"{name}-{digest}.gguf"
    if rebuild or not (package / MANIFEST).is_file():
        progress(f"making {package}")
        write_random_package(shape.spec, package, name)
    version = llama_version(settings.llama_python)
    if version is None:
        notes.append(f"{Path(settings.llama_python).name} has no llama-cpp-python: that peer is missing.")
    else:
        if rebuild or not peer.is_file():
            progress(f"making {peer}")
            write_gguf(shape.spec, peer, name)
        settings = replace(settings, gguf=peer, gguf_name=_PEER)
    report = model.measure(package, settings, progress)
    return replace(
        report,
        benchmark="shape",
        settings={**report.settings, "package": name},
        notes=(*notes, *report.notes),
    )
