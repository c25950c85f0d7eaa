"""What happens to the pages of docs/ on their way to the site (a hook of mkdocs, named in mkdocs.yml).

- Pages at the root of the repository and the README of each example become pages of the site; figures of
  benchmarks/results/ become its files. The repository holds none of them twice.
- Links to other files of the repository become their names: the site does not know where the repository is.
- `<!-- options: COMMAND -->` becomes the usage and all options of a command, as the program itself has them.
- Entries of the navigation without a page are left out, and `examples/` stands for the page of every example.
"""

from __future__ import annotations

import html
import os
import re
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from bitnet_onnx.cli import app

ROOT = Path(__file__).resolve().parent.parent
#: Where each page from outside docs/ stands in the site.
_PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "README.md": "index.md",
}
#: In the navigation: the page of every example.
_EXAMPLES = "examples/"
_RESULTS = "benchmarks/results"
_FIGURES = "figures"
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
_OPTIONS = re.compile(r"^<!-- options:([a-z ]*) -->$", re.MULTILINE)
_BARRED = re.compile(r"`([^`\n]*\\\|[^`\n]*)`")
_CODE = re.compile(r"(^ *```.*?^ *```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Leave out entries of the navigation that have no page."""
    known = set(_PAGES.values()) | {_example_page(path) for path in _examples()}
    config.nav = _present(config.nav or [], Path(config.docs_dir), known)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what stands outside docs/."""
    for source, name in _PAGES.items():
        if name != "index.md":
            files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    for path in _examples():
        files.append(File.generated(config, _example_page(path), abs_src_path=str(path)))
    for path in sorted((ROOT / _RESULTS).iterdir()):
        files.append(File.generated(config, f"{_FIGURES}/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Turn links to the repository into links of the site, and comments into options."""
    here = page.file.src_uri
    folder = Path(page.file.abs_src_path or here).parent

    def link(match: re.Match[str]) -> str:
        target, _, anchor = match["target"].partition("#")
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        path = Path(os.path.normpath(folder / target))
        name = _site_name(path, Path(config.docs_dir))
        if name is not None:
            found = os.path.relpath(name, Path(here).parent).replace(os.sep, "/")
            return f"{match['image']}[{match['text']}]({found}{'#' + anchor if anchor else ''})"
        if not path.exists():
            raise PluginError(f"{here}: {match['target']}: there is no such file in the repository")
        text = match["text"]
        return text if "`" in text else f"{text} (`{path.relative_to(ROOT).as_posix()}`)"

    markdown = _BARRED.sub(_barred, markdown)
    parts = _CODE.split(_OPTIONS.sub(lambda match: _options(match[1].strip()), markdown))
    # A link whose text is code is one link: code spans are put back before links are looked for.
    return "".join(_linked(parts, link))


def _barred(match: re.Match[str]) -> str:
    """A code span of a table in which bars are escaped, which this Markdown would show with their backslashes."""
    return f"<code>{html.escape(match[1]).replace(chr(92) + '|', '&#124;')}</code>"


def _linked(parts: list[str], link: Any) -> list[str]:
    """The parts of a page, with the links outside its fenced blocks replaced."""
    texts: list[str] = []
    held = ""
    for part in parts:
        if part.lstrip().startswith("```"):
            texts += [_LINK.sub(link, held), part]
            held = ""
        else:
            held += part
    return [*texts, _LINK.sub(link, held)]


def _site_name(path: Path, docs: Path) -> str | None:
    """The name that a file of the repository has in the site; None: it has none."""
    if path.is_relative_to(docs):
        return path.relative_to(docs).as_posix()
    for example in _examples():
        if path in {example, example.parent}:
            return _example_page(example)
    if not path.is_relative_to(ROOT):
        return None
    name = path.relative_to(ROOT).as_posix()
    if path.parent == ROOT / _RESULTS:
        return f"{_FIGURES}/{path.name}"
    return _PAGES.get(name)


def _examples() -> list[Path]:
    return sorted((ROOT / "examples").glob("*/README.md"))


def _example_page(path: Path) -> str:
    return f"examples/{path.parent.name}.md"


def _present(nav: list[Any], docs: Path, known: set[str]) -> list[Any]:
    kept: list[Any] = []
    for entry in nav:
        title, value = next(iter(entry.items()))
        if value == _EXAMPLES:
            kept.append({title: [_example_page(path) for path in _examples()]})
        elif isinstance(value, list):
            if inner := _present(value, docs, known):
                kept.append({title: inner})
        elif value in known or (docs / value).exists():
            kept.append(entry)
    return kept


def _options(name: str) -> str:
    """The usage of a command and a table of its options."""
    context = click.Context(app, info_name="bitnet-onnx", max_content_width=100)
    command: click.Command = app
    for word in name.split():
        found = command.get_command(context, word) if isinstance(command, click.Group) else None
        if found is None:
            raise PluginError(f"options: there is no command {name!r}")
        command = found
        context = click.Context(command, info_name=word, parent=context)
    lines = ["```text", command.get_usage(context).removeprefix("Usage: "), "```", ""]
    lines += ["| option | meaning |", "|---|---|"]
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record is not None:
            lines.append(f"| {_option(record[0])} | {_cell(record[1])} |")
    return "\n".join(lines) + "\n"


def _option(record: str) -> str:
    """The names of an option as code, and its value behind them."""
    words = record.split(" ")
    names = [word for word in words if word.startswith("-") or word == "/"]
    value = " ".join(words[len(names) :]).removeprefix("[").removesuffix("]")
    shown = f"<code>{' '.join(names)}</code>"
    return shown if not value else f"{shown} {_cell(value.replace('|', ' | '))}"


def _cell(text: str) -> str:
    return "".join(f"&#{ord(character)};" if character in "\\|<>*_[]" else character for character in text)
