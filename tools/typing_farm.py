"""Lay the import names over the folders: build/typing/bitnet_onnx/* are links to the sources.

The folders stand at the top of the repository, the import names are `bitnet_onnx.converters` and so on
(`wheel.packages` in pyproject.toml). Tools that follow files instead of imports (mypy, import-linter) see the
package through these links.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FARM = ROOT / "build" / "typing"


def wanted_links() -> dict[Path, Path]:
    """Each link of the farm and the file or folder that it stands for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    packages: dict[str, str] = project["tool"]["scikit-build"]["wheel"]["packages"]
    folders = {FARM / name: ROOT / source for name, source in packages.items()}
    links: dict[Path, Path] = {}
    for link, source in folders.items():
        if any(other != link and other.is_relative_to(link) for other in folders):
            # A package that others are laid into must be a real folder: link what it holds.
            links |= {link / entry.name: entry for entry in source.iterdir() if entry.name != "__pycache__"}
        else:
            links[link] = source
    return links


def main() -> None:
    """Make the missing links, remove those that are no longer wanted, touch no other."""
    links = wanted_links()
    if FARM.exists():
        for path in FARM.rglob("*"):
            if path.is_symlink() and path not in links:
                path.unlink()
    for link, source in links.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        target = Path(os.path.relpath(source, link.parent))
        if link.is_symlink() and link.readlink() == target:
            continue
        link.unlink(missing_ok=True)
        link.symlink_to(target, target_is_directory=source.is_dir())


if __name__ == "__main__":
    main()
