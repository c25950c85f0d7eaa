"""The Swift package of examples/ios: its own tests where there is Swift, and what can be checked without it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import swift_fixtures

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "examples/ios"
SOURCES = sorted(path for path in PACKAGE.rglob("*.swift") if ".build" not in path.parts)
README = (PACKAGE / "README.md").read_text("utf-8")
#: What the Core ML emitter calls the parts of a package, by their names in PackageNames.swift. They come from the
#: emitter's design; `test_the_emitter_has_the_same_names` holds them against its source.
NAMES = {
    "inputIDs": "inputIds",
    "causalMask": "causalMask",
    "keyCache": "keyCache",
    "valueCache": "valueCache",
    "logits": "logits",
    "prefill": "prefill",
    "decode": "decode",
    "modelName": "co.huggingface.exporters.name",
    "manifest": "com.github.bitnet-onnx.manifest",
}
#: Where a first build of everything still ends on a slow machine.
_BUILD_S = 900


def swift() -> str:
    """The command `swift`, which Debian keeps out of the path."""
    debian = Path("/usr/libexec/swift/bin/swift")
    command = shutil.which("swift") or (str(debian) if debian.exists() else None)
    # OpenStack's client of the same name says nothing of a target.
    if command is None or "Target:" not in _output([command, "--version"]):
        pytest.skip("needs a Swift toolchain of 6.0 or later (Debian 13: apt-get install swiftlang)")
    return command


def _output(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    return result.stdout + result.stderr


def _swift_test(command: str, *options: str, **environment: str) -> str:
    # In a build folder of the repository: a second run is fast.
    scratch = ROOT / "build/swift"
    result = subprocess.run(
        [command, "test", "--package-path", PACKAGE, "--scratch-path", scratch, *options],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        timeout=_BUILD_S,
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, output[-8000:]
    return output


def _executed(output: str) -> int:
    return max(int(count) for count in re.findall(r"Executed (\d+) tests?, with 0 failures", output))


#: Core ML itself is there on a Mac.
_STAND_IN = {} if sys.platform == "darwin" else {"BITNET_CHAT_STAND_IN": "1"}


def test_swift_test_passes() -> None:
    output = _swift_test(swift(), **_STAND_IN)
    assert "warning:" not in output
    assert _executed(output) >= (38 if _STAND_IN else 32)


def test_random_texts_give_the_ids_of_the_library(tmp_path: Path) -> None:
    command = swift()
    swift_fixtures.write(tmp_path, swift_fixtures.random_texts(200, seed=5))
    output = _swift_test(command, "--filter", "GoldenTests", BITNET_CHAT_FIXTURES=str(tmp_path), **_STAND_IN)
    assert _executed(output) == 3


def test_the_code_of_the_readme_compiles(tmp_path: Path) -> None:
    if not _STAND_IN:
        pytest.skip("compiled against the stand-in for Core ML, which is for platforms without it")
    command = swift()
    _swift_test(command, "--filter", "PackageNamesTests", **_STAND_IN)
    compiler = Path(command).with_name("swiftc")
    (code,) = re.findall(r"```swift\n(.*?)```", README, re.DOTALL)
    (tmp_path / "example.swift").write_text(code, "utf-8")
    modules = ROOT / "build/swift/debug/Modules"
    result = subprocess.run(
        [compiler, "-typecheck", "-swift-version", "6", "-I", modules, tmp_path / "example.swift"],
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert result.returncode == 0, result.stderr


def test_every_source_parses() -> None:
    reason = "needs tree-sitter and tree-sitter-swift (dependency group test)"
    grammar = pytest.importorskip("tree_sitter_swift", reason=reason)
    tree_sitter = pytest.importorskip("tree_sitter", reason=reason)
    parser = tree_sitter.Parser(tree_sitter.Language(grammar.language()))
    assert parser.parse(b"func f( {").root_node.has_error
    broken = [str(path.relative_to(ROOT)) for path in SOURCES if parser.parse(path.read_bytes()).root_node.has_error]
    assert len(SOURCES) > 20
    assert not broken


def test_sources_are_formatted() -> None:
    formatter = Path(swift()).resolve().with_name("swift-format")
    if not formatter.exists():
        pytest.skip("this Swift toolchain comes without swift-format")
    result = subprocess.run(
        [formatter, "lint", "--strict", *SOURCES], cwd=PACKAGE, capture_output=True, text=True, encoding="utf-8"
    )
    assert result.returncode == 0, result.stderr
    long = [
        f"{path.name}: {line}" for path in SOURCES for line in path.read_text("utf-8").splitlines() if len(line) > 120
    ]
    assert not long


def test_fixtures_are_those_of_the_library(tmp_path: Path) -> None:
    """`python tests/support/swift_fixtures.py` writes them anew."""
    swift_fixtures.write(tmp_path)
    names = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.json"))
    committed = swift_fixtures.FIXTURES
    assert names == sorted(path.relative_to(committed) for path in committed.rglob("*.json"))
    for name in names:
        assert json.loads((tmp_path / name).read_text("utf-8")) == json.loads((committed / name).read_text("utf-8")), (
            name
        )


def test_names_are_those_of_the_emitter() -> None:
    text = (PACKAGE / "Sources/BitnetChat/PackageNames.swift").read_text("utf-8")
    assert dict(re.findall(r'public static let (\w+) = "([^"]+)"', text)) == NAMES
    # Nowhere else are they written out.
    for path in PACKAGE.glob("Sources/**/*.swift"):
        if path.name != "PackageNames.swift":
            for name in NAMES.values():
                assert f'"{name}"' not in path.read_text("utf-8"), path


def test_the_emitter_has_the_same_names() -> None:
    emitter = ROOT / "converters/coreml"
    if not emitter.is_dir():
        pytest.skip("this version has no Core ML emitter")
    text = "\n".join(path.read_text("utf-8") for path in emitter.rglob("*.py"))
    for name in NAMES.values():
        assert f'"{name}"' in text, name
    assert ".tokenizer" in text


def _shown() -> list[list[str]]:
    blocks = re.findall(r"```console[^\n]*\n(.*?)```", README, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert lines
    assert all(line.startswith("$ ") for line in lines)
    return [shlex.split(line.removeprefix("$ ")) for line in lines]


@pytest.mark.parametrize("words", [words for words in _shown() if words[0] == "bitnet-onnx"], ids=" ".join)
def test_the_commands_shown_have_only_options_that_exist(words: list[str]) -> None:
    shown = _output([sys.executable, "-P", "-m", "bitnet_onnx", words[1], "--help"])
    if "coreml" in words and "coreml" not in shown:
        pytest.skip("this version has no Core ML emitter")
    options = [word for word in words if word.startswith("--")]
    assert options
    for option in options:
        assert f"{option} " in shown
    assert words[1] != "convert" or re.search(r"--to \[[a-z|]*coreml", shown)


def test_the_other_commands_shown_exist() -> None:
    usage = (
        (PACKAGE / "Sources/BitnetChat/Command.swift")
        .read_text("utf-8")
        .partition('usage = """')[2]
        .partition('"""')[0]
    )
    known = set(re.findall(r"--[a-z-]+", usage))
    runs = 0
    for words in _shown():
        if words[0] in ("bitnet-onnx", "pip"):
            continue
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            assert (name, value) == ("BITNET_CHAT_STAND_IN", "1")
        assert words[0] == "swift"
        assert words[1] in ("run", "test")
        if words[1] == "run":
            runs += 1
            arguments = words[words.index("bitnet-chat") + 1 :]
            assert {word for word in arguments if word.startswith("--")} <= known
    assert runs >= 4
    assert f"`{NAMES['inputIDs']}`" in README


def test_the_extra_that_the_readme_installs_exists() -> None:
    if not (ROOT / "converters/coreml").is_dir():
        pytest.skip("this version has no Core ML emitter")
    assert "bitnet-onnx[coreml]" in README
    assert re.search(r"^coreml = \[", (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
