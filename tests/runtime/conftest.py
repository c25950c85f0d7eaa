"""One tiny package for the tests that only read it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_package import write_package

from bitnet_onnx.runtime import Device, Model, PackageInfo


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
