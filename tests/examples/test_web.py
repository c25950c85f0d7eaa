"""The page of examples/web in a real browser: folders from disk, streamed text, logits, errors, what strangers see."""

from __future__ import annotations

import base64
import http.client
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from chromium import Page, chromium_page, find_chromium
from greedy import BITNET_TINY, PROMPT, PROMPT_IDS, TEXT, TOKENS, TOLERANCE, distance, teacher_forced
from node_examples import find_node, install

from bitnet_onnx.package_format import FORMAT_VERSION

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
WRONG = "WebGPU computes something else on this machine"
GREEDY = {"temperature": 0, "topP": 1, "repetitionPenalty": 1, "maxNewTokens": 32}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the page, served as `npm start` does."""
    folder = install("web", tmp_path_factory.mktemp("examples"))
    subprocess.run([find_node(), "prepare.js", BITNET_TINY], cwd=folder, check=True, timeout=60)
    command = [find_node(), "server.js", "0"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium_page(chromium()) as opened:
        yield opened


@pytest.fixture
def page(browser: Page, site: str) -> Page:
    browser.open(site)
    return browser


def chromium() -> str:
    path = find_chromium()
    if path is None:
        pytest.skip("Chromium is not installed")
    return path


def text_of(page: Page, selector: str) -> str:
    return str(page.run(f"document.querySelector({selector!r})?.textContent ?? ''"))


def choose(page: Page, package: Path, **settings: object) -> None:
    """Picks a folder, and waits until the model is there or an error is shown."""
    for name, value in settings.items():
        page.run(f"document.getElementById({name!r}).value = {json.dumps(str(value))}")
    page.choose("#folder", package)
    page.wait("!document.getElementById('composer').hidden || !document.getElementById('start-error').hidden")


def say(page: Page, text: str) -> None:
    page.run(
        f"(() => {{ const prompt = document.getElementById('prompt'); prompt.value = {json.dumps(text)};"
        f"prompt.dispatchEvent(new Event('input')); document.getElementById('form').requestSubmit(); }})()"
    )


def wait_for_answers(page: Page, count: int) -> None:
    page.wait(f"document.querySelector('.again') && document.querySelectorAll('.foot span').length === {count}")


def copy_package(folder: Path) -> Path:
    return shutil.copytree(BITNET_TINY, folder / "my-model")


def test_a_folder_from_disk_writes_the_same_tokens(page: Page, site: str) -> None:
    choose(page, BITNET_TINY, **GREEDY)
    assert text_of(page, "#start-error") == ""
    assert text_of(page, "#model") == "bitnet-tiny"
    assert text_of(page, "#device").startswith("WebAssembly")
    page.run("""(() => {
        window.seen = new Set();
        const look = () => window.seen.add(document.querySelector(".body")?.textContent ?? "");
        new MutationObserver(look).observe(document.getElementById("log"), { subtree: true, childList: true });
    })()""")
    say(page, PROMPT)
    wait_for_answers(page, 1)
    assert text_of(page, ".body") == PROMPT + TEXT
    assert text_of(page, ".foot").startswith("32 tokens · ")
    assert "tokens/s on WebAssembly" in text_of(page, ".foot")
    # It was not shown at once, and each state is the beginning of the next.
    seen = sorted(page.run("[...window.seen]"), key=len)
    assert len(seen) > 3
    assert all(later.startswith(earlier) for earlier, later in pairwise(seen))
    names = page.run("performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert names
    assert all(name.startswith(site) for name in names)


def test_logits_are_within_the_tolerance_of_function_bodies(page: Page, operator_library: Path) -> None:
    parts = [list(PROMPT_IDS), *([token] for token in TOKENS[:-1])]
    found = read_logits(page, "wasm", parts)[len(PROMPT_IDS) - 1 :]
    assert distance(found, teacher_forced(library=operator_library)) < TOLERANCE


def read_logits(page: Page, backend: str, parts: list[list[int]]) -> np.ndarray:
    encoded = page.run(f"""(async () => {{
        const {{ fromServer }} = await import("./src/files.js");
        const {{ Engine }} = await import("./src/engine.js");
        const files = await fromServer((await (await fetch("models/index.json")).json())[0], () => {{}});
        const engine = new Engine({backend!r});
        await engine.open(files);
        const {{ rows }} = await engine.read({parts});
        engine.close();
        const blob = new Blob(rows);
        return new Promise((done) => {{
            const reader = new FileReader();
            reader.onload = () => done(reader.result.split(",")[1]);
            reader.readAsDataURL(blob);
        }});
    }})()""")
    return np.frombuffer(base64.b64decode(encoded), np.float32).reshape(-1, 4096)


def test_webgpu_computes_the_same(site: str, operator_library: Path) -> None:
    """On an emulated graphics card, which is slow: a prompt and a token."""
    with chromium_page(chromium(), gpu=True) as page:
        page.open(site)
        if not page.run("(async () => Boolean(await navigator.gpu?.requestAdapter()))()"):
            pytest.skip("this Chromium emulates no WebGPU")
        found = read_logits(page, "webgpu", [list(PROMPT_IDS), [TOKENS[0]]])[len(PROMPT_IDS) - 1 :]
        assert distance(found, teacher_forced(library=operator_library)[:2]) < TOLERANCE
        # Nobody would want it unasked.
        assert choose_backend(page, "0", "auto") == ["wasm", "WebGPU is only emulated on this machine."]
        assert choose_backend(page, "0", "webgpu") == ["webgpu", ""]


@pytest.mark.parametrize(
    ("fault", "device", "note"),
    [
        ("row[0] += 0.01", "auto", ""),
        ("row.reverse()", "webgpu", f"{WRONG}: logits that differ by 185 %."),
        # What only single tokens show, and what only one of them shows.
        ("{ if (rows.indexOf(row) > 8) row.reverse() }", "webgpu", f"{WRONG}: logits that differ by 90 %."),
        ("{ if (rows.indexOf(row) === 9) row.reverse() }", "webgpu", ""),
        ("row.fill(NaN)", "webgpu", f"{WRONG}: no numbers."),
        ("seconds = 9", "auto", "WebGPU is slower than WebAssembly for this model."),
        ("seconds = 9", "webgpu", ""),
        ("row.reverse()", "wasm", "WebAssembly was chosen in the settings."),
        ("(() => { throw new Error('It was lost.') })()", "auto", "WebGPU cannot run this model. It was lost."),
    ],
)
@pytest.mark.parametrize("size", [100, 2**30 + 1])
def test_webgpu_has_to_be_right_and_faster(page: Page, fault: str, device: str, note: str, size: int) -> None:
    page.run("""Object.defineProperty(navigator, "gpu", { configurable: true, value: {
        requestAdapter: async () => ({ info: {} }) } })""")
    assert choose_backend(page, fault, device, size) == ["wasm" if note else "webgpu", note]


def choose_backend(page: Page, fault: str, device: str, size: int = 100) -> Any:
    """What `openBest` takes, and what it says of it, where the engine of WebGPU has a fault."""
    return page.run(f"""import("./src/choose.js").then(async ({{ openBest }}) => {{
        const open = new Set();
        class Played {{
            constructor(backend) {{ this.backend = backend; open.add(this); }}
            async open() {{ this.sample = Array.from({{ length: 14 }}, (_, place) => 7 * place); }}
            async read(parts) {{
                let seconds = 1;
                const rows = parts.flat().map((id) => Float32Array.from({{ length: 50 }}, (_, i) => Math.cos(i + id)));
                if (this.backend === "webgpu") {{
                    seconds = 0.5;
                    for (const row of rows) {fault};
                }}
                return {{ rows, seconds }};
            }}
            close() {{ open.delete(this); }}
        }}
        const files = new Map([["model.onnx.data", {{ size: {size} }}]]);
        const {{ engine, note }} = await openBest(files, {{ device: {device!r} }}, () => {{}}, Played);
        if (open.size !== 1 || !open.has(engine)) throw new Error(`${{open.size}} engines are open`);
        return [engine.backend, note];
    }})""")


def test_stopping_and_settings(page: Page) -> None:
    choose(page, BITNET_TINY, temperature=1, maxNewTokens=900, seed=5)
    say(page, PROMPT)
    page.wait("document.querySelector('.body').textContent.length > 60")
    started = time.monotonic()
    assert page.run("document.getElementById('send').textContent") == "Stop"
    # The page itself is free meanwhile.
    assert time.monotonic() - started < 0.5
    page.run("document.getElementById('form').requestSubmit()")
    wait_for_answers(page, 1)
    assert "stopped" in text_of(page, ".foot")
    first = text_of(page, ".body")
    page.run("document.getElementById('maxNewTokens').value = '8'")
    page.run("document.querySelector('.again').click()")
    page.wait("document.querySelector('.foot span')?.textContent.startsWith('8 tokens')")
    # The same seed begins the same.
    assert first.startswith(text_of(page, ".body"))
    page.run("document.getElementById('new').click()")
    assert page.run("document.getElementById('log').childElementCount") == 0
    page.run("document.getElementById('change').click()")
    assert not page.run("document.getElementById('start').hidden")


def test_a_chat(page: Page, tmp_path: Path) -> None:
    package = copy_package(tmp_path)
    (package / "chat_template.jinja").write_text(TEMPLATE)
    choose(page, package, temperature=0, maxNewTokens=6)
    assert text_of(page, "#model") == "my-model"
    say(page, "who is <b>he</b>?")
    wait_for_answers(page, 1)
    assert text_of(page, ".user") == "who is <b>he</b>?"
    say(page, "and she?")
    wait_for_answers(page, 2)
    assert page.run("document.querySelectorAll('.user').length") == 2
    say(page, "a </s> b")
    page.wait("document.querySelector('.answer .error')")
    assert text_of(page, ".answer .error") == "A message holds </s>, a control token of this model; remove it."


def test_the_model_beside_the_page_and_dropped_folders(page: Page, tmp_path: Path) -> None:
    page.wait("!document.getElementById('models').hidden")
    page.run("document.querySelector('#models button').click()")
    page.wait("!document.getElementById('composer').hidden")
    assert text_of(page, "#model") == "bitnet-tiny"
    page.run("document.getElementById('change').click()")
    package = copy_package(tmp_path)
    data = {"items": [], "files": [str(package)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        page.call("Input.dispatchDragEvent", type=kind, x=550, y=350, data=data)
    page.wait("!document.getElementById('composer').hidden")
    assert text_of(page, "#model") == "my-model"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no graph", "This is no bitnet-onnx package: it has no model.onnx"),
        ("no weights", "model.onnx.data is missing beside model.onnx"),
        ("short weights", "model.onnx.data does not belong to model.onnx or is cut off"),
        ("large weights", "model.onnx.data has 2.0 GB, more than the 2.0 GB that a page can hold"),
        ("short graph", "model.onnx is no readable ONNX file"),
        ("later format", f"bitnet_onnx.json has format version 99, this program reads {FORMAT_VERSION}"),
    ],
)
def test_a_damaged_folder_is_one_sentence(page: Page, tmp_path: Path, damage: str, message: str) -> None:
    package = copy_package(tmp_path)
    weights = package / "model.onnx.data"
    match damage:
        case "no graph":
            (package / "model.onnx").unlink()
        case "no weights":
            weights.unlink()
        case "short weights":
            weights.write_bytes(weights.read_bytes()[:100_000])
        case "large weights":
            with weights.open("r+b") as file:
                file.truncate(2**31 + 1)
        case "short graph":
            (package / "model.onnx").write_bytes((package / "model.onnx").read_bytes()[:-100])
        case "later format":
            manifest = json.loads((package / "bitnet_onnx.json").read_text())
            (package / "bitnet_onnx.json").write_text(json.dumps({**manifest, "format_version": 99}))
    choose(page, package)
    shown = text_of(page, "#start-error")
    assert message in shown
    assert "\n" not in shown
    # What was wrong can be mended, and the folder chosen again.
    assert not page.run("document.getElementById('open-folder').disabled")


def test_a_long_prompt_can_be_stopped(page: Page) -> None:
    """Between the parts in which it is read; then no token was written."""
    choose(page, BITNET_TINY)
    say(page, " the" * 900)
    page.run("document.getElementById('form').requestSubmit()")
    wait_for_answers(page, 1)
    assert text_of(page, ".foot").startswith("0 tokens · ")
    assert "stopped" in text_of(page, ".foot")


def test_a_prompt_longer_than_the_context(page: Page) -> None:
    choose(page, BITNET_TINY)
    say(page, " the" * 1100)
    page.wait("document.querySelector('.answer .error')")
    assert text_of(page, ".answer .error").startswith("The context is full: the prompt has 1101 tokens")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("delete window.WebAssembly", "This browser has no WebAssembly"),
        ("WebAssembly.validate = () => false", "This browser is too old: its WebAssembly has no vector instructions"),
    ],
)
def test_browsers_that_cannot(page: Page, site: str, script: str, message: str) -> None:
    added = page.call("Page.addScriptToEvaluateOnNewDocument", source=script)["identifier"]
    page.open(site)
    page.wait("!document.getElementById('start-error').hidden")
    assert text_of(page, "#start-error").startswith(message)
    assert page.run("document.getElementById('open-folder').disabled")
    page.call("Page.removeScriptToEvaluateOnNewDocument", identifier=added)


def test_memory_that_is_not_enough_is_said(page: Page) -> None:
    said = page.run("""import("./decoder/errors.js").then(({ explain }) => [
        new RangeError("Array buffer allocation failed"), new Error("Can't create a session. std::bad_alloc"),
        "Aborted(OOM)", new Error("failed to allocate a buffer of size 9."), new Error("odd\\nand long"),
    ].map(explain))""")
    assert set(said[:4]) == {
        "The memory is not enough for this model; close other tabs or programs, or take a smaller model."
    }
    assert said[4] == "ONNX Runtime failed: odd"


@pytest.mark.parametrize("width", [360, 1100])
def test_nothing_is_wider_than_the_window(page: Page, site: str, width: int) -> None:
    page.open(site, width=width)
    wide = "document.documentElement.scrollWidth > innerWidth || document.body.scrollWidth > innerWidth"
    assert not page.run(wide)
    choose(page, BITNET_TINY, maxNewTokens=4)
    assert not page.run(wide)
    say(page, "word" * 80)
    wait_for_answers(page, 1)
    assert not page.run(wide)
    assert page.run("document.querySelector('header').scrollWidth <= innerWidth")


def test_light_and_dark(page: Page, site: str) -> None:
    brightness = []
    for dark in (False, True):
        page.open(site, dark=dark)
        color = page.run("getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/g).map(Number)")
        brightness.append(sum(color))
    assert brightness[0] > 600
    assert brightness[1] < 150


def ask(site: str, path: str, method: str = "GET") -> tuple[int, dict[str, Any], bytes]:
    connection = http.client.HTTPConnection(urlsplit(site).netloc, timeout=10)
    connection.request(method, path)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, dict(response.getheaders()), body


def test_the_server_gives_only_the_page(site: str) -> None:
    status, headers, body = ask(site, "/")
    assert status == 200
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    policy = headers["Content-Security-Policy"].replace("; frame-ancestors 'none'", "")
    assert policy.encode() in body
    module = "/vendor/onnxruntime-web/ort-wasm-simd-threaded.wasm"
    assert ask(site, module, "HEAD")[1]["Content-Type"] == "application/wasm"
    for path in (
        "/package.json",
        "/server.js",
        "/node_modules/onnxruntime-web/package.json",
        "/src/../server.js",
        "/src/%2e%2e/server.js",
        "/src/..%2fserver.js",
        "/src/%00",
        "/%",
        "/src/",
        "//etc/passwd",
    ):
        assert ask(site, path)[0] == 404, path
    assert ask(site, "/", "POST")[0] == 405
