"""What a checkpoint or a package is, without converting or running it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from bitnet_onnx.converters._roles import CheckpointTensors
from bitnet_onnx.converters.checkpoints import Checkpoint, open_checkpoint
from bitnet_onnx.converters.families import Config
from bitnet_onnx.converters.model import describe
from bitnet_onnx.decoder import MANIFEST_SIZES
from bitnet_onnx.errors import BitnetOnnxError, PackageError
from bitnet_onnx.json_input import load_object
from bitnet_onnx.package_format import COREML_SUFFIX, MANIFEST, Operators
from bitnet_onnx.runtime import PackageInfo

_MAX_MANIFEST: Final = 1 << 24
#: Bits of activations that are not worth a word.
_USUAL_BITS: Final = 8
#: Which systems first read a version of Core ML's specification.
_SYSTEMS: Final = {
    6: "iOS 15 and macOS 12",
    7: "iOS 16 and macOS 13",
    8: "iOS 17 and macOS 14",
    9: "iOS 18 and macOS 15",
    10: "iOS 26 and macOS 26",
}


@dataclass(frozen=True, slots=True)
class Layer:
    """One matrix: its role, `(N, K)`, how it is stored, what a weight costs, and the error of quantization."""

    role: str
    shape: tuple[int, ...]
    stored: str
    bits_per_weight: float
    relative_error: float | None = None


@dataclass(frozen=True, slots=True)
class Inspection:
    """The facts of a checkpoint or a package.

    Attributes:
        kind: `package`, `checkpoint` or `Core ML package`.
        path: where it is.
        family: Hugging Face `model_type`.
        source: format and name of the checkpoint.
        sizes: the decoder's dimensions by their Hugging Face names.
        parameters: weights of all matrices, a tied head counted once.
        bits_per_weight: mean over all matrices, scales included.
        layers: every matrix.
        files: size in bytes of each file.
        readers: what can read it, each with a condition.
        problem: why the checkpoint cannot be converted, or None.
        operators: what a package's graph is written in: `bitnet`, `stock` or `standard`; None for anything else.
    """

    kind: Literal["package", "checkpoint", "Core ML package"]
    path: str
    family: str
    source: str
    sizes: dict[str, int | bool]
    parameters: int
    bits_per_weight: float
    layers: tuple[Layer, ...]
    files: dict[str, int]
    readers: tuple[str, ...] = field(default=())
    problem: str | None = None
    operators: str | None = None

    def as_dict(self, *, layers: bool = True) -> dict[str, object]:
        """All facts as JSON values; `layers` says whether to list every matrix."""
        result = asdict(self)
        if not layers:
            del result["layers"]
        return result

    def precisions(self) -> dict[str, int]:
        """How many weights are stored in which way, most first."""
        counts: Counter[str] = Counter()
        for layer in self.layers:
            counts[layer.stored] += _count(layer.shape)
        return dict(counts.most_common())


def inspect(path: str | Path) -> Inspection:
    """Describe a package directory, a Hugging Face directory, a GGUF file or an `.mlpackage`.

    Raises:
        CheckpointError, PackageError: it is none of them, or is broken.
        InputError: it is an `.mlpackage`, and coremltools is not installed.
    """
    path = Path(path)
    if path.suffix == COREML_SUFFIX:
        return _inspect_coreml(path)
    if (path / MANIFEST).exists():
        return _inspect_package(path)
    with open_checkpoint(path) as checkpoint:
        return _inspect_checkpoint(checkpoint)


def _inspect_package(path: Path) -> Inspection:
    # The runtime's reader has the checks; what it does not need is read here.
    operators = PackageInfo.open(path).operators

    def bits(recorded: int) -> int:
        # Others than our operators do with activations what they do: nothing is said of it layer by layer.
        return recorded if operators is Operators.BITNET else _USUAL_BITS

    manifest: dict[str, Any] = load_object(
        (path / MANIFEST).read_bytes(), str(path / MANIFEST), max_bytes=_MAX_MANIFEST, error=PackageError
    )
    try:
        layers = tuple(
            Layer(
                str(layer["role"]),
                tuple(int(size) for size in layer["shape"]),
                _stored(str(layer["weights"]), int(layer["group_size"]), bits(int(layer["activation_bits"]))),
                float(layer["bits_per_weight"]),
                float(layer["relative_error"]),
            )
            for layer in manifest["layers"]
        )
        fallback = str(manifest["operator"]["fallback"]) if operators is Operators.BITNET else ""
        sizes = {name: value for name, value in manifest["architecture"].items() if name != "family"}
        family = str(manifest["architecture"]["family"])
        source = f"{manifest['source']['format']}, {manifest['source']['name']}"
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise PackageError(f"{path / 'bitnet_onnx.json'}: the list of layers is broken: {error!r:.80}") from error
    return Inspection(
        kind="package",
        path=str(path),
        family=family,
        source=source,
        sizes=sizes,
        parameters=sum(_count(layer.shape) for layer in layers),
        bits_per_weight=_mean_bits(layers),
        layers=layers,
        files=_files(path),
        readers=_readers(operators, fallback),
        operators=str(operators),
    )


def _readers(operators: Operators, fallback: str) -> tuple[str, ...]:
    """What opens a package, each with a condition."""
    match operators:
        case Operators.BITNET:
            return (
                "bitnet-onnx: the operator library where it is built, else the function bodies",
                f"onnxruntime 1.27 and later, any language: the {fallback} function bodies, no library needed",
                "onnxruntime with the operator library registered (`bitnet-onnx ops --path`): 1.21 and later",
                "onnxruntime-genai 0.18 and later: the directory as it is",
            )
        case Operators.STOCK:
            return (
                "bitnet-onnx: the operator library plays no part",
                "onnxruntime 1.24 and later, any language: com.microsoft operators, no library and no functions",
                "onnxruntime-genai 0.18 and later: the directory as it is",
            )
        case Operators.STANDARD:
            return (
                "bitnet-onnx: infer and evaluate, not serve",
                "onnxruntime 1.24 and later, any language: operators of the standard alone",
                "onnxruntime-genai 0.18 and later: the directory as it is",
                "whatever reads ONNX with these operators, such as the reference evaluator of onnx",
            )


def _inspect_coreml(path: Path) -> Inspection:
    # Everybody who imports this package would load the interpreter.
    from bitnet_onnx.evaluation.mil._manifest import read_manifest
    from bitnet_onnx.evaluation.mil.package import open_package

    with open_package(path) as package:
        program = package.program
        manifest = read_manifest(program)
        layers: tuple[Layer, ...] = ()
        sizes: dict[str, int | bool] = {}
        if manifest is not None:
            layers = tuple(
                Layer(
                    role,
                    shape,
                    _stored(str(precision.weights), precision.group_size, precision.activation_bits),
                    bits,
                    manifest.errors.get(role),
                )
                for role, precision in manifest.precisions.items()
                for shape, bits in [manifest.matrices.get(role, ((0, 0), 0.0))]
            )
            known = {name: manifest.sizes.get(name) for name in (*MANIFEST_SIZES, "head_dim")}
            sizes = {name: value for name, value in known.items() if isinstance(value, int)}
            sizes["context_length"] = manifest.context
        functions = sorted(program.functions, key=lambda name: (name != program.main, name))
        system = _SYSTEMS.get(program.specification, f"specification {program.specification}")
        return Inspection(
            kind="Core ML package",
            path=str(path),
            family="unknown" if manifest is None else str(manifest.sizes.get("family")),
            source="unknown" if manifest is None else manifest.source,
            sizes=sizes,
            parameters=sum(_count(layer.shape) for layer in layers),
            bits_per_weight=_mean_bits(layers),
            layers=layers,
            files={str(file.relative_to(path)): file.stat().st_size for file in _below(path)},
            readers=(
                f"Core ML on {system} and later: {', '.join(functions)}",
                "`bitnet-onnx validate`: runs it in numpy",
            ),
        )


def _inspect_checkpoint(checkpoint: Checkpoint) -> Inspection:
    infos = [info for info in checkpoint.tensors.values() if len(info.shape) == 2]
    layers = tuple(
        Layer(info.name, info.shape, info.dtype, 8.0 * info.nbytes / max(_count(info.shape), 1)) for info in infos
    )
    config, problem, sizes = Config(checkpoint.config), None, {}
    try:
        described = describe(config)
        CheckpointTensors(checkpoint, described.family, described.spec, described.scheme)
        sizes = {name: getattr(described.spec, name) for name in (*MANIFEST_SIZES, "head_dim", "context_length")}
    except BitnetOnnxError as error:
        problem = str(error)
    return Inspection(
        kind="checkpoint",
        path=str(checkpoint.path),
        family=str(checkpoint.config.get("model_type", "unknown")),
        source=f"{checkpoint.format}, {checkpoint.name}",
        sizes=sizes,
        parameters=sum(_count(layer.shape) for layer in layers),
        bits_per_weight=_mean_bits(layers),
        layers=layers,
        files=_files(checkpoint.path),
        readers=() if problem else ("bitnet-onnx convert",),
        problem=problem,
    )


def _stored(weights: str, group_size: int, activation_bits: int) -> str:
    groups = f", groups of {group_size}" if group_size else ""
    # The usual 8 bits go without saying.
    activations = f", {activation_bits}-bit activations" if activation_bits > 8 else ""
    return f"{weights}{groups}{activations}"


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _mean_bits(layers: tuple[Layer, ...]) -> float:
    total = sum(_count(layer.shape) for layer in layers)
    return sum(_count(layer.shape) * layer.bits_per_weight for layer in layers) / max(total, 1)


def _below(path: Path) -> list[Path]:
    return sorted(entry for entry in path.rglob("*") if entry.is_file())


def _files(path: Path) -> dict[str, int]:
    if path.is_file():
        return {path.name: path.stat().st_size}
    return {entry.name: entry.stat().st_size for entry in sorted(path.iterdir()) if entry.is_file()}
