"""`pip` as the pages of the documentation call it, where everything is installed already.

`pip install` names this project (`.`, `bitnet-onnx` or a wheel of it, with extras) or packages of others. Nothing is
fetched: an extra must exist, and what it requires must be installed in the version that it asks for, so that the
command would end well and change nothing. Anything else is refused.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, metadata, requires, version

from packaging.requirements import InvalidRequirement, Requirement

_OURS = re.compile(r"(?:bitnet-onnx|\.|(?:\S*/)?bitnet_onnx-[\w.*-]+\.whl)(?:\[(?P<extras>[\w,-]+)\])?")


def main(words: list[str]) -> None:
    """End with a message where the command would not have done what the page says."""
    if not words or words[0] != "install":
        sys.exit(f"pip {' '.join(words)}: pages may only use `pip install`")
    named = [word for word in words[1:] if not word.startswith("-")]
    if not named:
        sys.exit("pip install: nothing is named")
    for word in named:
        ours = _OURS.fullmatch(word)
        if ours is None:
            _check(word, set())
            continue
        for extra in (ours["extras"] or "").split(","):
            _check_ours(extra)


def _check_ours(extra: str) -> None:
    known = set(metadata("bitnet-onnx").get_all("Provides-Extra") or ())
    if extra and extra not in known:
        sys.exit(f"pip install: bitnet-onnx has no extra {extra!r}: {', '.join(sorted(known))}")
    for line in requires("bitnet-onnx") or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            if requirement.name == "bitnet-onnx":
                for other in requirement.extras:
                    _check_ours(other)
            else:
                _check(line, requirement.extras)


def _check(line: str, extras: set[str]) -> None:
    try:
        requirement = Requirement(line)
        found = version(requirement.name)
    except InvalidRequirement:
        sys.exit(f"pip install {line}: this is no requirement that a page may name")
    except PackageNotFoundError:
        sys.exit(f"pip install: {line} is not installed here: add it to the group `test`, or say what the block needs")
    if not requirement.specifier.contains(found, prereleases=True):
        sys.exit(f"pip install: {line} does not take {found}, which is installed here")


if __name__ == "__main__":
    main(sys.argv[1:])
