"""The examples in JavaScript, installed: the sources copied, the packages of npm from a cache of this machine."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from bitnet_onnx.model_zoo import cache_root

EXAMPLES = Path(__file__).parents[2] / "examples"
_NODE_MAJOR = 20
#: What `npm ci` and `npm start` lay into the folders.
_INSTALLED = shutil.ignore_patterns("node_modules", "vendor", "models")
_INSTALL_S = 300


def install(name: str, folder: Path) -> Path:
    """A copy of `examples/NAME`, ready to run, in `folder` beside one of `examples/web`.

    The test is skipped where the dependencies cannot be had. They are unpacked once a machine, and
    again when package-lock.json changes.
    """
    find_node()
    for example in {name, "web"}:
        shutil.copytree(EXAMPLES / example, folder / example, ignore=_INSTALLED, dirs_exist_ok=True)
    copy = folder / name
    (copy / "node_modules").symlink_to(_modules(copy) / "node_modules", target_is_directory=True)
    return copy


def find_node() -> str:
    """The path of Node.js; the test is skipped where there is none, no npm, or only older ones."""
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        pytest.skip("Node.js or npm is not installed")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.removeprefix("v").split(".")[0]) < _NODE_MAJOR:
        pytest.skip(f"Node.js is {version}, the examples need {_NODE_MAJOR}")
    return node


def run_script(folder: Path, script: str, *arguments: object) -> Any:
    """The JSON value that an ES module writes; its imports are relative to `folder`, its `args` are `arguments`."""
    code = f"const args = JSON.parse(process.argv[1]);\n{script}"
    result = subprocess.run(
        [find_node(), "--input-type=module", "-e", code, json.dumps(arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def _modules(example: Path) -> Path:
    """The folder whose node_modules are those of the example's package-lock.json."""
    lock = (example / "package-lock.json").read_bytes()
    place = cache_root() / "npm" / f"{example.name}-{hashlib.sha256(lock).hexdigest()[:16]}"
    if place.exists():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    # Another process may do the same: whoever is first with a complete folder gives it its name.
    with tempfile.TemporaryDirectory(dir=place.parent, ignore_cleanup_errors=True) as folder:
        work = Path(folder) / "work"
        work.mkdir()
        for name in ("package.json", "package-lock.json", ".npmrc"):
            shutil.copy(example / name, work)
        try:
            result = subprocess.run(
                ["npm", "ci", "--ignore-scripts"], cwd=work, capture_output=True, text=True, timeout=_INSTALL_S
            )
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm did not install the packages of examples/{example.name} within {_INSTALL_S} s")
        if result.returncode:
            reason = result.stderr.strip().splitlines()[-1:] or ["no reason given"]
            pytest.skip(f"npm cannot install the packages of examples/{example.name}: {reason[0]:.200}")
        try:
            work.rename(place)
        except OSError:
            if not place.exists():
                raise
    return place
