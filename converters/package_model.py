"""A package of ours as the source of a conversion, so that nobody needs the checkpoint that it came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bitnet_onnx.converters._config import Config
from bitnet_onnx.converters._package_blocks import matrix_reader
from bitnet_onnx.converters._package_graph import read_graph
from bitnet_onnx.converters._package_matrices import NamedArrays
from bitnet_onnx.converters._package_tensors import PackageTensors
from bitnet_onnx.converters.checkpoints._files import BinaryFile, hashing, member, read_small
from bitnet_onnx.converters.checkpoints.huggingface import directory_tokenizer
from bitnet_onnx.converters.model import Described, SourceModel, describe, generation_config_of
from bitnet_onnx.converters.onnx._head_layout import head_size
from bitnet_onnx.decoder import MANIFEST_SIZES
from bitnet_onnx.errors import PackageError
from bitnet_onnx.json_input import load_object, shown
from bitnet_onnx.package_checks import check_versions
from bitnet_onnx.package_format import CONFIG, GENERATION_CONFIG, MANIFEST, MODEL, MODEL_DATA

_MAX_JSON: Final = 1 << 24
_MAX_CONTEXT: Final = 1 << 26
_MAX_NAME: Final = 200


@contextmanager
def open_package(path: Path, *, context_length: int | None = None) -> Iterator[SourceModel]:
    """Open a package directory: the codes and scales that it holds are given back without loss.

    Args:
        path: the directory.
        context_length: positions to make room for instead of those of the package.

    Raises:
        PackageError: it is no package, of another version, or contradicts itself.
        CheckpointError: a link in it leads elsewhere, or its config.json is broken.
    """
    manifest = _object(path, MANIFEST)
    check_versions(manifest, path / MANIFEST)
    fields = _object(path, CONFIG)
    config = Config(fields)
    described = _described(config, manifest, path, context_length)
    spec = described.spec
    with (
        BinaryFile(_file(path, MODEL)) as model,
        BinaryFile(_file(path, MODEL_DATA)) as data,
        hashing({MODEL: model, MODEL_DATA: data}) as sha256,
    ):
        arrays = NamedArrays(str(path), read_graph(model, data))
        tensors = PackageTensors(arrays, spec, matrix_reader(arrays, manifest, path / MANIFEST, spec))
        yield SourceModel(
            path=path,
            name=_name(manifest, path),
            format="package",
            spec=spec,
            tensors=tensors,
            config=fields,
            generation_config=generation_config_of(path, fields, _object(path, GENERATION_CONFIG), spec),
            trained_ternary=_trained_ternary(described),
            tokenizer=directory_tokenizer(path, spec.vocab_size).files,
            sha256=sha256,
        )


def _described(config: Config, manifest: Mapping[str, object], path: Path, context_length: int | None) -> Described:
    """The decoder that the package was made of, checked against the sizes in its manifest."""
    where = path / MANIFEST
    architecture = manifest.get("architecture")
    if not isinstance(architecture, dict):
        raise PackageError(f"{where}: no object `architecture`; convert the checkpoint again")
    positions = architecture.get("context_length")
    if isinstance(positions, bool) or not isinstance(positions, int) or not 1 <= positions <= _MAX_CONTEXT:
        raise PackageError(
            f"{where}: architecture.context_length is {positions!r:.40}, expected an integer from 1 to {_MAX_CONTEXT}"
        )
    wanted = positions if context_length is None else context_length
    described = describe(config)
    if wanted != described.spec.context_length:
        described = describe(config, wanted)
    spec = described.spec
    for name in (*MANIFEST_SIZES, "head_dim"):
        # The manifest has the size of a head in the cache, which may be larger than that of the weights.
        value, expected = architecture.get(name), head_size(spec) if name == "head_dim" else getattr(spec, name)
        if type(value) is not type(expected) or value != expected:
            raise PackageError(f"{where}: architecture.{name} is {value!r:.40}, but {expected} by {CONFIG}")
    return described


def _trained_ternary(described: Described) -> bool:
    family, scheme, spec = described.family, described.scheme, described.spec
    if scheme is None:
        return family.trained_ternary
    roles = (role for role, _ in spec.matrices() if role.startswith("layers."))
    return any(scheme.covers(family.source(spec, f"{role}.weight").name.removesuffix(".weight")) for role in roles)


def _name(manifest: Mapping[str, object], path: Path) -> str:
    source = manifest.get("source")
    name = source.get("name") if isinstance(source, dict) else None
    if isinstance(name, str) and 0 < len(name) <= _MAX_NAME and name.isprintable():
        return name
    return path.resolve().name


def _file(path: Path, name: str) -> Path:
    found = member(path, name)
    if found is None:
        raise PackageError(
            f"{path}: {shown(name)} is missing; copy the package's whole directory, or convert the checkpoint again"
        )
    return found


def _object(path: Path, name: str) -> dict[str, object]:
    data = read_small(path, name, max_bytes=_MAX_JSON)
    if data is None:
        raise PackageError(
            f"{path}: {shown(name)} is missing; copy the package's whole directory, or convert the checkpoint again"
        )
    return load_object(data, str(path / name), max_bytes=_MAX_JSON, error=PackageError)
