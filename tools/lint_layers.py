"""Run import-linter on the farm of links, whatever way the package is installed.

An editable install has an import hook that lists the repository's root among the package's folders; import-linter would
take every folder there, the tests too, for a part of the package. So the hook is put aside first.
"""

from __future__ import annotations

import os
import sys

import typing_farm
from importlinter.cli import lint_imports_command

_EDITABLE_HOOK = "ScikitBuildRedirectingFinder"


def main() -> None:
    """Make the farm, and check the contracts of pyproject.toml on it."""
    typing_farm.main()
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != _EDITABLE_HOOK]
    os.chdir(typing_farm.FARM)
    sys.path.insert(0, str(typing_farm.FARM))
    lint_imports_command(["--config", str(typing_farm.ROOT / "pyproject.toml"), "--no-cache"])


if __name__ == "__main__":
    main()
