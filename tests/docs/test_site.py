"""The documentation as a site: it builds without a warning, its links arrive, no other host is asked for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import click
import pytest
from chromium import Page, chromium_page, find_chromium

from bitnet_onnx.cli import app

ROOT = Path(__file__).resolve().parent.parent.parent
#: Attributes by which a page makes a browser fetch something.
FETCHED = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "link": ("href",),
    "source": ("src", "srcset"),
    "iframe": ("src",),
    "video": ("src", "poster"),
    "object": ("data",),
}


class Read(HTMLParser):
    """Links, anchors, and what is fetched for a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        self.fetched += [values[name] for name in FETCHED.get(tag, ()) if name in values]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it."""
    if os.name == "nt":
        pytest.skip("the links of tools/typing_farm.py need rights that Windows gives to few")
    folder = tmp_path_factory.mktemp("site") / "site"
    subprocess.run([sys.executable, str(ROOT / "tools" / "typing_farm.py")], check=True)
    built = subprocess.run(
        [sys.executable, "-P", "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert built.stderr == ""
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Read]:
    return {path: Read(path.read_text("utf-8")) for path in sorted(site.rglob("*.html"))}


def test_no_page_fetches_anything_from_another_host(site: Path, pages: dict[Path, Read]) -> None:
    assert len(pages) > 40
    for path, page in pages.items():
        assert page.fetched, path
        assert [url for url in page.fetched if re.match(r"(?:[a-z]+:)?//", url)] == [], path
    for path in site.rglob("*.css"):
        assert re.findall(r"url\(['\"]?(?:https?:)?//|@import", path.read_text("utf-8")) == [], path


def test_every_link_within_the_site_arrives(site: Path, pages: dict[Path, Read]) -> None:
    for path, page in pages.items():
        # The page for what is not there may be shown anywhere: its links are absolute.
        for link in [] if path.name == "404.html" else page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{path.relative_to(site)}: {link}"
            if parts.fragment and target in pages:
                anchors = pages[target].anchors
                assert unquote(parts.fragment) in anchors, f"{path.relative_to(site)}: {link}"


def leaves(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from leaves(found, (*words, name))
    else:
        yield words, command


@pytest.mark.parametrize(("words", "command"), [pytest.param(*leaf, id=" ".join(leaf[0])) for leaf in leaves(app)])
def test_every_option_is_on_the_page_of_its_command(site: Path, words: tuple[str, ...], command: click.Command) -> None:
    text = (site / "commands" / f"{words[0]}.html").read_text("utf-8")
    assert f"bitnet-onnx {' '.join(words)} " in text
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert re.search(rf"<code>[^<]*{re.escape(parameter.opts[-1])}\b[^<]*</code>", text), parameter.opts


def test_every_figure_is_shown_with_what_is_behind_it(site: Path) -> None:
    page = Read((site / "figures.html").read_text("utf-8"))
    results = {path.name for path in (ROOT / "benchmarks" / "results").iterdir()}
    assert any(name.endswith(".png") for name in results)
    shown = {Path(url).name for url in (*page.fetched, *page.links) if url.startswith("figures/")}
    assert shown == results
    for name in results:
        assert (site / "figures" / name).read_bytes() == (ROOT / "benchmarks" / "results" / name).read_bytes()


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_links_of_pages_at_the_root_arrive(name: str) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", (ROOT / name).read_text("utf-8"))
    for link in links:
        path, _, anchor = link.partition("#")
        if re.match(r"https?:", link):
            continue
        target = ROOT / (path or name)
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", text).strip().lower().replace(" ", "-") for text in headings}, link


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    path = find_chromium()
    if path is None:
        pytest.skip("Chromium is not installed")
    with chromium_page(path) as page:
        yield page


def test_the_site_is_read_and_searched_from_a_folder(site: Path, tab: Page) -> None:
    tab.open((site / "commands" / "infer.html").as_uri(), width=1280)
    assert tab.run("document.querySelector('h1').innerText").startswith("infer")
    tab.run(
        "(() => { const field = document.querySelector('[data-md-component=search-query]'); field.focus();"
        " field.value = 'sensitivity'; field.dispatchEvent(new Event('input', { bubbles: true }));"
        " field.dispatchEvent(new KeyboardEvent('keyup', { bubbles: true })); })()"
    )
    tab.wait("document.querySelector('.md-search-result__item a[href*=calibrate]')")
    assert tab.log == []


def test_copied_commands_have_neither_prompts_nor_output(site: Path, tab: Page) -> None:
    tab.open((site / "commands" / "convert.html").as_uri(), width=1280)
    copied = tab.run(
        "(() => { const code = document.querySelector('.highlight code'); code.setAttribute('data-md-copying', '');"
        " const text = code.innerText; code.removeAttribute('data-md-copying'); return text; })()"
    )
    assert copied.strip() == "bitnet-onnx convert bitnet-tiny models/tiny"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["index", "commands/convert", "api/index", "figures", "quality"])
def test_pages_fit_a_phone_in_light_and_dark(site: Path, tab: Page, name: str, dark: bool) -> None:
    # A page keeps what it showed last, and one that is still open would do so when the system's colours change.
    tab.run("try { localStorage.clear() } catch {}")
    tab.call("Page.navigate", url="about:blank")
    tab.wait("location.href == 'about:blank'")
    tab.open((site / f"{name}.html").as_uri(), width=390, height=844, dark=dark)
    tab.wait(f"document.body.getAttribute('data-md-color-scheme') == '{'slate' if dark else 'default'}'")
    background = tab.run("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(value) for value in re.findall(r"\d+", background)[:3])
    assert (brightness < 300) == dark, background
    assert tab.run("document.documentElement.scrollWidth <= innerWidth")
