"""Paths out of a Core ML package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mil_packages import MODEL, Program, header, record, refused, refused_bounded, write

GOOD = header() + record(48, 128) + bytes(64)


@pytest.mark.parametrize(
    "path",
    [
        "../../../secret.mlmodel",
        "/etc/passwd",
        "com.apple.CoreML/../../Manifest.json",
        "com.apple.CoreML//model.mlmodel",
        "./com.apple.CoreML/model.mlmodel",
        "com.apple.CoreML\\model.mlmodel",
        "C:/model.mlmodel",
        "com.apple.CoreML/model.mlmodel\n",
        "",
        "a/" * 20 + "b",
    ],
)
def test_a_manifest_that_leads_elsewhere(path: str, tmp_path: Path) -> None:
    refused(
        write(tmp_path, Program().model.SerializeToString(), path=path), "is not the path of a file within the package"
    )


@pytest.mark.parametrize(
    ("manifest", "match"),
    [
        ("{", "not JSON"),
        ("[]", "a JSON object is expected"),
        ("{}", "itemInfoEntries must be an object"),
        ('{"itemInfoEntries": {}, "rootModelIdentifier": "A"}', "rootModelIdentifier 'A' names no item with a path"),
        ('{"itemInfoEntries": {"A": {"path": 7}}, "rootModelIdentifier": "A"}', "names no item with a path"),
        ('{"itemInfoEntries": {"A": 1}, "rootModelIdentifier": ["A"]}', "names no item with a path"),
        ('{"itemInfoEntries": {"A": {"path": "b"}}, "rootModelIdentifier": "A"}', "there is no such file"),
        (json.dumps({"itemInfoEntries": {str(key): {} for key in range(101)}}), "at most 100 items"),
        ("[" * 100, "nests deeper than"),
    ],
)
def test_a_manifest_that_lies(manifest: str, match: str, tmp_path: Path) -> None:
    package = Program().save(tmp_path)
    (package / "Manifest.json").write_text(manifest)
    refused(package, match)


@pytest.mark.parametrize("part", ["Manifest.json", f"Data/{MODEL}", "Data/com.apple.CoreML/weights/weight.bin", "Data"])
def test_links(part: str, tmp_path: Path) -> None:
    program = Program()
    program.stored("w", 64, (12,))
    package = program.save(tmp_path, GOOD)
    outside = tmp_path / "outside"
    (package / part).rename(outside)
    (package / part).symlink_to(outside)
    refused(package, "a symbolic link; a package must hold its files itself")


@pytest.mark.parametrize(
    ("file", "match"),
    [
        ("@model_path/../../../outside.bin", "is not the path of a file within the package"),
        ("/etc/passwd", "is not the path of a file within the package"),
        ("weights/weight.bin", "expected @model_path/FILE"),
        ("@model_path", "expected @model_path/FILE"),
        ("@model_path/weights", "not a regular file"),
        ("@model_path/weights/other.bin", "there is no such file"),
    ],
)
def test_weights_elsewhere(file: str, match: str, tmp_path: Path) -> None:
    program = Program()
    program.stored("w", 64, (12,), file=file)
    refused(program.save(tmp_path, GOOD), match)


def test_the_command_refuses_them_too(tmp_path: Path) -> None:
    program = Program()
    program.stored("w", 64, (12,), file="@model_path/../../Manifest.json")
    assert "is not the path of a file" in refused_bounded(program.save(tmp_path, GOOD), tmp_path / "run")
