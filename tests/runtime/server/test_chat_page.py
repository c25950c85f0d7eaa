"""The chat page in a real browser."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Page, chromium_page, find_chromium
from server_client import KEY, MODEL, listen
from tiny_package import TinyShape, write_package

SPEECH = "Hello **you**, `code` <img src=x>\n\n```python\nprint(1)\n```\n\n- one\n- two"


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    path = find_chromium()
    if path is None:
        pytest.skip("Chromium is not installed")
    with chromium_page(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def package_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With room for more than one answer."""
    return write_package(tmp_path_factory.mktemp("page"), shape=TinyShape(context_length=512))


def send(page: Page, text: str) -> None:
    page.run(f"$('prompt').value = {text!r}; fit(); $('form').requestSubmit()")


def test_a_conversation(page: Page, package_dir: Path) -> None:
    with listen(package_dir, answer=SPEECH, step_s=0.002) as server:
        page.open(server.url)
        page.wait(f"$('model').textContent === {MODEL!r}")
        send(page, "hi <b>there</b>")
        page.wait("running === null && $('speed').textContent")
        assert page.run("document.querySelector('.user').textContent") == "hi <b>there</b>"
        assert page.run("document.querySelector('.body').querySelectorAll('img, b').length") == 0
        assert page.run("document.querySelector('.body strong').textContent") == "you"
        assert page.run("document.querySelector('.body pre').textContent") == "print(1)"
        assert page.run("document.querySelectorAll('.body li').length") == 2
        assert "tokens/s" in page.run("document.querySelector('.foot').textContent")
        send(page, "and")
        page.wait("running === null && messages.length === 4")
        assert [request.parameters.temperature for request in server.engine.requests] == [0.7, 0.7]
        page.run("document.querySelector('.again').click()")
        page.wait("running === null && messages.length === 4")
        assert len(server.engine.requests) == 3
        assert server.engine.requests[1].prompt == server.engine.requests[2].prompt
    assert page.log == []


def test_stop_frees_the_slot(page: Page, package_dir: Path) -> None:
    with listen(package_dir, endless=True, step_s=0.005) as server:
        page.open(server.url)
        send(page, "hi")
        page.wait("document.querySelector('.body').textContent.length > 3")
        page.run("$('form').requestSubmit()")
        page.wait("running === null")
        assert "stopped" in page.run("document.querySelector('.foot').textContent")
        ends = time.monotonic() + 10
        while not server.engine.ended and time.monotonic() < ends:
            time.sleep(0.01)
        assert server.engine.ended == ["cancelled"]


def test_a_key_is_asked_for(page: Page, package_dir: Path) -> None:
    with listen(package_dir, keys=(KEY,)) as server:
        page.open(server.url)
        page.wait("$('model').textContent.includes('API key')")
        send(page, "hi")
        page.wait("document.querySelector('.error')")
        page.run(f"$('key').value = {KEY!r}; $('key').dispatchEvent(new Event('change'))")
        page.wait(f"$('model').textContent === {MODEL!r}")
        page.run("document.querySelector('.again').click()")
        page.wait("running === null && messages.length === 2")
        page.run("$('key').value = ''; $('key').dispatchEvent(new Event('change'))")
    page.log.clear()


@pytest.mark.parametrize("width", [390, 1100])
def test_nothing_is_wider_than_the_window(page: Page, package_dir: Path, width: int) -> None:
    with listen(package_dir, answer="word " * 40) as server:
        page.open(server.url, width=width)
        send(page, "hi")
        page.wait("running === null && messages.length === 2")
        assert page.run("document.documentElement.scrollWidth <= innerWidth")


def test_light_and_dark(page: Page, package_dir: Path) -> None:
    with listen(package_dir) as server:
        brightness = []
        for dark in (False, True):
            page.open(server.url, dark=dark)
            color = page.run("getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/g).map(Number)")
            brightness.append(sum(color))
    assert brightness[0] > 600
    assert brightness[1] < 150
