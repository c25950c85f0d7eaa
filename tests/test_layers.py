"""The layers of the house: who may import whom, seen from what a running interpreter has loaded."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
CORE: list[str] = PROJECT["tool"]["importlinter"]["contracts"][0]["source_modules"]
#: Those of the core that are folders.
FOLDERS = {"bitnet_onnx.quantization"}
#: Modules directly in bitnet_onnx/ that stand above everything.
FACE = {"__init__", "__main__", "api", "inspection"}

IMPORT = """
import importlib, json, sys
sys.path.append(sys.argv[1])
before = set(sys.modules)
for name in json.load(sys.stdin):
    importlib.import_module(name)
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def loaded_by(modules: list[str]) -> set[str]:
    """Names of all modules that a fresh interpreter loads for `modules`, the root being last on its path."""
    result = subprocess.run(
        [sys.executable, "-P", "-c", IMPORT, str(ROOT)], input=json.dumps(modules), capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout))


def all_modules() -> list[str]:
    """Every module of the product; benchmarks are scripts of their own."""
    packages: dict[str, str] = PROJECT["tool"]["scikit-build"]["wheel"]["packages"]
    names = set()
    for package, folder in packages.items():
        if folder == "benchmarks":
            continue
        for path in (ROOT / folder).rglob("*.py"):
            parts = [*package.split("/"), *path.relative_to(ROOT / folder).with_suffix("").parts]
            if parts[-1] != "__main__":
                names.add(".".join(parts).removesuffix(".__init__"))
    return sorted(names)


def test_no_module_is_loaded_by_its_bare_name_and_torch_never() -> None:
    modules = all_modules()
    assert {"bitnet_onnx.converters", "bitnet_onnx.runtime", "bitnet_onnx.model_zoo"} <= set(modules)
    loaded = loaded_by(modules)
    assert set(modules) <= loaded
    tops = {name.partition(".")[0] for name in loaded}
    folders = set(PROJECT["tool"]["scikit-build"]["wheel"]["packages"].values()) - {"bitnet_onnx"}
    assert tops & folders == set()
    # coremltools takes seconds, and greets.
    assert tops & {"coremltools", "torch", "transformers", "tensorflow", "jax"} == set()


def test_the_core_loads_numpy_and_nothing_else() -> None:
    core = [name for name in all_modules() if name in CORE or name.startswith(tuple(f"{one}." for one in FOLDERS))]
    assert set(core) > FOLDERS
    loaded = loaded_by(core)
    tops = {name.partition(".")[0] for name in loaded}
    assert tops - set(sys.stdlib_module_names) <= {"bitnet_onnx", "numpy"}
    assert {name for name in loaded if name.startswith("bitnet_onnx.")} == set(core)


def test_every_module_of_the_core_is_in_the_contract() -> None:
    files = {path.stem for path in (ROOT / "bitnet_onnx").glob("*.py")}
    assert {f"bitnet_onnx.{name}" for name in files - FACE} | FOLDERS == set(CORE)


def test_the_contracts_of_import_linter_are_kept() -> None:
    if importlib.util.find_spec("importlinter") is None:
        pytest.skip("import-linter is not installed (`make lint` installs it)")
    result = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "lint_layers.py")],
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout
