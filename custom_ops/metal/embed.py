"""Writes a C++ file that holds a text: the shaders, for `newLibrary(source:)`."""

from __future__ import annotations

import sys
from pathlib import Path

_PIECE = 8000  # characters of one literal


def main() -> None:
    """Embed the file of the first argument in that of the second."""
    text = Path(sys.argv[1]).read_text()
    if ')metal"' in text:
        raise SystemExit(f'{sys.argv[1]} holds )metal", which ends the literal that it is to be')
    pieces = "\n".join(f'R"metal({text[at : at + _PIECE]})metal"' for at in range(0, len(text), _PIECE))
    Path(sys.argv[2]).write_text(
        f"namespace bitnet::gpu {{\nextern const char kShaders[];\nconst char kShaders[] = {pieces};\n}}\n"
    )


if __name__ == "__main__":
    main()
