"""`npm` as the pages of the documentation call it: `npm ci` takes packages that the tests have unpacked before.

They lie in the cache by folder and checksum of package-lock.json. Without them, and for everything else, it is npm.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from bitnet_onnx.model_zoo import cache_root


def main(words: list[str]) -> None:
    """End with npm's exit status."""
    lock = Path("package-lock.json")
    if words[:1] == ["ci"] and lock.is_file():
        digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:16]
        kept = cache_root() / "npm" / f"{Path.cwd().name}-{digest}" / "node_modules"
        if kept.is_dir() and not Path("node_modules").exists():
            Path("node_modules").symlink_to(kept, target_is_directory=True)
            return
    path = os.pathsep.join(folder for folder in os.environ["PATH"].split(os.pathsep) if folder != os.environ["SHIMS"])
    npm = shutil.which("npm", path=path)
    if npm is None:
        sys.exit("npm is not installed")
    sys.exit(subprocess.run([npm, *words]).returncode)


if __name__ == "__main__":
    main(sys.argv[1:])
