"""The table of letters, numbers and spaces of examples/cpp, out of the `tokenizers` library itself.

`python tests/support/unicode_ranges.py` writes it anew.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Regex, pre_tokenizers

TABLE = Path(__file__).parents[2] / "examples/cpp/unicode.h"
_CLASSES = {"kLetters": r"\p{L}", "kNumbers": r"\p{N}", "kSpaces": r"\s"}
_A_LINE = 6
_HEAD = """\
// Which characters are letters, numbers and spaces to the regular expressions of the `tokenizers` library;
// written by tests/support/unicode_ranges.py.
#ifndef BITNET_EXAMPLE_UNICODE_H_
#define BITNET_EXAMPLE_UNICODE_H_

#include <cstdint>

struct CodeRange {
  uint32_t first, last;
};

// clang-format off
"""
_TAIL = """\
// clang-format on

#endif  // BITNET_EXAMPLE_UNICODE_H_
"""


def ranges(pattern: str) -> list[tuple[int, int]]:
    """First and last code points of the runs that match."""
    # Planes 4 to 13 are empty, and the last two are private.
    every = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x40000), *range(0xE0000, 0xF0000)]))
    runs = pre_tokenizers.Split(Regex(f"(?:{pattern})+"), "removed", invert=True).pre_tokenize_str(every)
    return [(ord(run[0]), ord(run[-1])) for run, _ in runs]


def table() -> str:
    """The text of the header."""
    text = _HEAD
    for name, pattern in _CLASSES.items():
        items = [f"{{0x{first:X}, 0x{last:X}}}" for first, last in ranges(pattern)]
        lines = [", ".join(items[start : start + _A_LINE]) for start in range(0, len(items), _A_LINE)]
        body = ",\n    ".join(lines)
        text += f"constexpr CodeRange {name}[] = {{\n    {body}}};\n"
    return text + _TAIL


if __name__ == "__main__":
    TABLE.write_text(table(), "utf-8", newline="\n")
