r"""Entries of `modules_to_not_convert`, matched as transformers matches them, in time linear in name and entry.

Each entry is a regular expression there. A file may bring one that takes a regular expression engine years, so that
only what real lists hold is read: characters, `.`, `\d`, `[0-9]`, each perhaps repeated, and alternatives. Where one is
repeated, the states of a match are the bits of an integer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bitnet_onnx.errors import UnsupportedError
from bitnet_onnx.json_input import shown

#: Characters of all entries together; a list that names one module of each of a hundred layers has 3,000.
MAX_CHARACTERS: Final = 4096
#: Of those that repeat something, as `model.layers.*.mlp.down_proj` does.
MAX_REPEATING: Final = 256

_ANY, _DECIMAL, _DIGIT = "any", "decimal", "digit"
_CLASSES: Final = {".": _ANY, r"\d": _DECIMAL, "[0-9]": _DIGIT}
# One element: a class, an escaped sign, or a character that means itself; then how often. A lazy repetition accepts
# the same names.
_ELEMENT: Final = re.compile(r"(\.|\\d|\[0-9\]|\\[^\sA-Za-z0-9]|[^\\.^$*+?{}\[\]()|])([*+?]?)\??", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Element:
    characters: str
    optional: bool
    repeats: bool


@dataclass(frozen=True, slots=True)
class _Alternative:
    elements: tuple[_Element, ...]
    whole: bool


class ModulePatterns:
    """Entries of `modules_to_not_convert`.

    Args:
        entries: as the file has them.
        where: what messages call the list.

    Raises:
        UnsupportedError: an entry is a regular expression of another kind, or there are too many.
    """

    def __init__(self, entries: Sequence[str], where: str) -> None:
        size = sum(len(entry) + 1 for entry in entries)
        if size > MAX_CHARACTERS:
            raise UnsupportedError(f"{where} holds {size} characters: the limit is {MAX_CHARACTERS}")
        self.entries = tuple(entries)
        plain: list[str] = []
        self._repeating: list[_Alternative] = []
        size = 0
        for entry in self.entries:
            for text in entry.split("|"):
                alternative = _alternative(text, entry, where)
                if any(element.repeats or element.optional for element in alternative.elements):
                    self._repeating.append(alternative)
                    size += len(text)
                else:
                    plain.append(text)
        if size > MAX_REPEATING:
            raise UnsupportedError(
                f"{where}: entries that repeat something hold {size} characters: the limit is {MAX_REPEATING}"
            )
        self._plain = re.compile(rf"(?:{'|'.join(plain)})(?:(?<=\.)|(?=\.|$))") if plain else None

    def match(self, module: str) -> bool:
        """Whether an entry names `module`: as its end, or from its start to a dot or the end.

        Source: `should_convert_module` of transformers 5.23.
        """
        if module.endswith(self.entries) or (self._plain is not None and self._plain.match(module)):
            return True
        if not self._repeating:
            return False
        # Bit p: the first p characters have been matched, or: character p belongs to a class.
        last = 1 << len(module)
        places: dict[str, int] = {_ANY: 0, _DECIMAL: 0, _DIGIT: 0}
        for position, character in enumerate(module):
            bit = 1 << position
            places[character] = places.get(character, 0) | bit
            places[_ANY] |= bit if character != "\n" else 0
            places[_DECIMAL] |= bit if character.isdecimal() else 0
            places[_DIGIT] |= bit if character.isascii() and character.isdigit() else 0
        dots = places.get(".", 0)
        end = last | (last >> 1 if module.endswith("\n") else 0)
        boundary = dots | dots << 1 | end
        return any(
            _reach(alternative, places) & boundary & (end if alternative.whole else -1)
            for alternative in self._repeating
        )


def _alternative(text: str, entry: str, where: str) -> _Alternative:
    rest = text.removeprefix("^")
    whole = rest.endswith("$") and not rest.endswith("\\$")
    rest = rest.removesuffix("$") if whole else rest
    elements = []
    position = 0
    while position < len(rest):
        found = _ELEMENT.match(rest, position)
        if found is None:
            raise UnsupportedError(
                f"{where}: {shown(entry)} is a regular expression that is not read: use module names, and "
                rf"'.*', '\d+' or '[0-9]+' for parts of them"
            )
        characters = _CLASSES.get(found[1], found[1].removeprefix("\\"))
        elements.append(_Element(characters, found[2] in {"*", "?"}, found[2] in {"*", "+"}))
        position = found.end()
    return _Alternative(tuple(elements), whole)


def _reach(alternative: _Alternative, places: dict[str, int]) -> int:
    """Where a match that starts at the beginning can end, as bits."""
    ends = 1
    for element in alternative.elements:
        here = places.get(element.characters, 0)
        once = (ends & here) << 1
        if element.repeats and once:
            # The carry of the sum runs through all neighbours that belong to the class.
            once |= (here + (once & here)) ^ here
        ends = once | (ends if element.optional else 0)
        if not ends:
            break
    return ends
