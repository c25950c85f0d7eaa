"""Packages for the tests that only read them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from batch_play import Model as BatchModel
from family_models import FAMILY_MODELS, shapes_of, write_family_checkpoint
from tiny_package import write_package

from bitnet_onnx.converters import convert
from bitnet_onnx.runtime import Device, Model, PackageInfo
from bitnet_onnx.runtime.engine import _kv_slots
from bitnet_onnx.runtime.kv_scales import KvType


@pytest.fixture(scope="session")
def package_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_package(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="session")
def package(package_dir: Path) -> PackageInfo:
    return PackageInfo.open(package_dir)


@pytest.fixture
def model(package: PackageInfo) -> Model:
    return Model(package, Device(), threads=1)


@pytest.fixture
def fresh_package(tmp_path: Path) -> Path:
    """A package that a test may spoil."""
    directory = tmp_path / "package"
    directory.mkdir()
    return write_package(directory)


@pytest.fixture(params=["paged", "plain"])
def storage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to hold the cache, on every system that has both."""
    if request.param == "plain":
        monkeypatch.setattr(_kv_slots, "_NO_RESERVE", {})
    elif sys.platform not in _kv_slots._NO_RESERVE:
        pytest.skip("this system reserves memory before it is written")
    return str(request.param)


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory, operator_library: Path) -> Callable[..., BatchModel]:
    """A tiny model of a family, and how its keys and values are held."""
    packages: dict[str, PackageInfo] = {}
    models: dict[tuple[str, KvType], BatchModel] = {}

    def get(name: str, kv: KvType = "float32") -> BatchModel:
        if name not in packages:
            folder = tmp_path_factory.mktemp(name)
            source = write_family_checkpoint(folder / "source", FAMILY_MODELS[name], shapes_of(name))
            convert(source, folder / "package")
            packages[name] = PackageInfo.open(folder / "package")
        if (name, kv) not in models:
            models[name, kv] = BatchModel(packages[name], Device(operator_library=operator_library), kv)
        return models[name, kv]

    return get
