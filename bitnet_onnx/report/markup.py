"""Pieces of an HTML page that loads nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

_LARGE: Final = 1000

_STYLE: Final = """
:root { color-scheme: light dark; --paper: #fbfaf8; --card: #ffffff; --ink: #22201d; --soft: #6b665f; --grid: #e4e0d9;
  --good: #1f7a4d; --fair: #a76a00; --poor: #c2410c; --unusable: #b3132b;
  --series-0: #2563a8; --series-1: #c2410c; --series-2: #1f7a4d; --series-3: #8b3fa8; --series-4: #a76a00;
  --series-5: #0f7f86; --series-6: #7a5c4a; }
@media (prefers-color-scheme: dark) { :root { --paper: #161513; --card: #1f1e1b; --ink: #ece8e1; --soft: #a39d93;
  --grid: #37342f; --good: #5cc793; --fair: #e5ab4a; --poor: #f2874f; --unusable: #ff6b7d;
  --series-0: #6ea8e8; --series-1: #f2874f; --series-2: #5cc793; --series-3: #c58be0; --series-4: #e5ab4a;
  --series-5: #57c3ca; --series-6: #c2a28e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.15rem; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .25rem; }
p { margin: .25rem 0 1rem; max-width: 46rem; }
.soft { color: var(--soft); font-size: .9rem; }
.verdict { background: var(--card); border: 1px solid var(--grid); border-left: .4rem solid var(--level);
  border-radius: .5rem; padding: 1.1rem 1.3rem; margin: 1.25rem 0; }
.verdict strong { display: block; font-size: 1.6rem; line-height: 1.25; color: var(--level); }
.verdict p { margin: .4rem 0 0; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .75rem; margin: 1rem 0; }
.numbers div { background: var(--card); border: 1px solid var(--grid); border-radius: .5rem; padding: .6rem .9rem; }
.numbers b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .35rem .6rem; border-bottom: 1px solid var(--grid); white-space: nowrap; }
th { font-weight: 600; color: var(--soft); }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
code { font-family: ui-monospace, monospace; font-size: .95em; }
svg { width: 100%; height: auto; background: var(--card); border: 1px solid var(--grid); border-radius: .5rem; }
.switch { text-align: right; } .switch label { cursor: pointer; } .switch .second, .switch input:checked ~ .first
  { display: none; } .switch input:checked ~ .second { display: block; }
summary { cursor: pointer; color: var(--soft); margin: 2.5rem 0 .5rem; }
"""


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page.

    Args:
        title: text.
        parts: HTML of its body, in order.
    """
    return (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head>\n<body><main>\n" + "\n".join(parts) + "\n</main></body></html>\n"
    )


def figures(cells: Iterable[tuple[str, str]]) -> str:
    """What is to be seen first: names and their values, text both."""
    inner = "".join(
        f"<div><b>{escape(value)}</b><span class='soft'>{escape(name)}</span></div>" for name, value in cells
    )
    return f'<section class="numbers">{inner}</section>'


def chart(title: str, svg: str, text: str) -> str:
    """A drawing with its title and a sentence about it."""
    return f"<h2>{escape(title)}</h2><p class='soft'>{escape(text)}</p>{svg}"


def switch(identifier: str, label: str, first: str, second: str) -> str:
    """One of two pieces of HTML, the second where the box is ticked.

    Args:
        identifier: of the box, unique in the page.
        label: of the box, text.
        first: what is shown at first.
        second: what takes its place.
    """
    return (
        f'<div class="switch"><input type="checkbox" id="{escape(identifier)}"> '
        f'<label class="soft" for="{escape(identifier)}">{escape(label)}</label>'
        f'<div class="first">{first}</div><div class="second">{second}</div></div>'
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], texts: tuple[int, ...] = ()) -> str:
    """A table of text; the columns in `texts`, and the first, stand left."""

    def row(tag: str, cells: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=text' if index in texts else ''}>{escape(cell)}</{tag}>"
            for index, cell in enumerate(cells)
        )

    body = "".join(f"<tr>{row('td', cells)}</tr>" for cells in rows)
    return f'<div class="scroll"><table><thead><tr>{row("th", head)}</tr></thead><tbody>{body}</tbody></table></div>'


def number(value: float) -> str:
    """With three or four digits that count."""
    if not math.isfinite(value):
        return "beyond measure"
    if value and abs(value) < 0.01:
        return f"{value:.1e}"
    return f"{value:.3f}" if value < 10 else f"{value:.2f}" if value < _LARGE else f"{value:,.0f}"
