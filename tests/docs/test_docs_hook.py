"""What tools/docs_site.py makes of a page: links into the repository, bars in tables, options of commands."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
pytest.importorskip("mkdocs", reason="the group `docs` is not installed")


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "tools" / "docs_site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made(hook: ModuleType, text: str, name: str = "concepts/page.md") -> str:
    file: Any = SimpleNamespace(src_uri=name, abs_src_path=str(ROOT / "docs" / name))
    config = SimpleNamespace(docs_dir=str(ROOT / "docs"))
    result: str = hook.on_page_markdown(text, SimpleNamespace(file=file), config, None)
    return result


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[pages](../operator.md#exact-arithmetic)", "[pages](../operator.md#exact-arithmetic)"),
        ("[how](../../CONTRIBUTING.md#rules)", "[how](../contributing.md#rules)"),
        ("[start](../../README.md)", "[start](../index.md)"),
        ("[phones](../../examples/ios/README.md)", "[phones](../examples/ios.md)"),
        ("[phones](../../examples/ios)", "[phones](../examples/ios.md)"),
        ("[`decoder.py`](../../bitnet_onnx/decoder.py)", "`decoder.py`"),
        ("[the decoder](../../bitnet_onnx/decoder.py)", "the decoder (`bitnet_onnx/decoder.py`)"),
        (
            "![curves](../../benchmarks/results/training-ordering.png)",
            "![curves](../figures/training-ordering.png)",
        ),
        ("[Ray](https://docs.ray.io/)", "[Ray](https://docs.ray.io/)"),
        ("[below](#here)", "[below](#here)"),
        ("```text\n[x](../../nowhere)\n```\n", "```text\n[x](../../nowhere)\n```\n"),
        (r"| `--to a\|b` | x |", "| <code>--to a&#124;b</code> | x |"),
    ],
)
def test_links_arrive_in_the_site_or_become_names(hook: ModuleType, text: str, expected: str) -> None:
    assert made(hook, text) == expected


def test_a_link_to_nothing_ends_the_build(hook: ModuleType) -> None:
    with pytest.raises(Exception, match=r"concepts/page\.md: \.\./\.\./nowhere\.py: there is no such file"):
        made(hook, "[x](../../nowhere.py)")


def test_options_are_those_of_the_program(hook: ModuleType) -> None:
    text = made(hook, "<!-- options: zoo list -->")
    assert "bitnet-onnx zoo list [OPTIONS]" in text
    assert "| <code>--json</code> | One JSON list on stdout. |" in text
    with pytest.raises(Exception, match="there is no command 'zoo nothing'"):
        made(hook, "<!-- options: zoo nothing -->")


def test_the_navigation_leaves_out_what_has_no_page(hook: ModuleType) -> None:
    nav = [{"Here": "operator.md"}, {"Gone": "nowhere.md"}, {"Empty": [{"Gone": "nowhere.md"}]}, {"All": "examples/"}]
    found = hook._present(nav, ROOT / "docs", set())
    assert found[0] == {"Here": "operator.md"}
    assert list(found[1]) == ["All"]
    assert "examples/ios.md" in found[1]["All"]
    assert len(found) == 2
