"""What `/metrics` says, read by Prometheus' own parser, and by ours into a snapshot."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from server_client import KEY, MODEL, listen_real, serve

from bitnet_onnx.errors import InputError
from bitnet_onnx.runtime.engine.engine import EngineSettings
from bitnet_onnx.runtime.engine.metrics import Histogram
from bitnet_onnx.runtime.server.snapshot import parse_snapshot


def scrape(url: str) -> dict[str, float]:
    """Samples by name and labels."""
    families = list(text_string_to_metric_families(httpx2.get(f"{url}/metrics").text))
    assert all(family.documentation and family.type != "unknown" for family in families)
    return {
        sample.name + "".join(f" {value}" for value in sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def test_values_move_with_the_load(package_dir: Path) -> None:
    prompt = list(range(1, 51))
    with listen_real(package_dir, EngineSettings(max_batch=2, prompt_cache_block=16)) as (_, server):
        before = scrape(server.url)
        for _ in range(2):
            body = {"prompt": prompt, "max_tokens": 5, "temperature": 0, "logit_bias": {"258": -100}}
            assert httpx2.post(f"{server.url}/v1/completions", json=body).status_code == 200
        after = scrape(server.url)
    moved = {name: after[name] - before.get(name, 0) for name in after}
    name = "bitnet_onnx_{}".format
    generated = moved[name("generated_tokens_total")]
    assert 2 <= generated <= 10
    assert moved[name("prompt_tokens_total")] == 100
    assert moved[name("cached_tokens_total")] == 48
    assert moved[name("prefilled_tokens_total")] == 52
    for histogram, count in (("queued", 2), ("first_token", 2), ("token_gap", generated - 2)):
        assert moved[name(f"{histogram}_seconds_count")] == count, histogram
        assert moved[name(f"{histogram}_seconds_bucket +Inf")] == count
    assert moved[name("first_token_seconds_sum")] > moved[name("queued_seconds_sum")] > 0
    assert moved[name("http_responses_total /v1/completions 200")] == 2
    assert sum(moved[key] for key in moved if key.startswith(name("finished_total"))) == 2
    assert moved[name("memory_bytes prompt cache")] > 0
    assert after[name("memory_peak_bytes")] >= after[name("memory_used_bytes")] > 0
    assert 0 <= after[name("memory_fragmentation_ratio")] <= 1
    assert after[name("max_batch")] == 2


def test_names_keep_to_the_conventions(package_dir: Path) -> None:
    with serve(package_dir) as server:
        families = list(text_string_to_metric_families(server.client.get("/metrics").text))
    for family in families:
        ours = family.name.startswith("bitnet_onnx_")
        assert ours or family.name.startswith("process_"), family.name
        if family.type == "histogram":
            assert family.name.endswith("_seconds")
        if family.type == "counter":  # the parser takes the suffix off
            assert all(sample.name.endswith(("_total", "_created")) for sample in family.samples)
        for unit in ("_ms", "_mb", "_kb", "_percent", "_count"):
            assert not family.name.endswith(unit), family.name


def test_the_names_in_the_documentation_exist(package_dir: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "serving.md").read_text("utf-8")
    table = text.partition("## Monitoring")[2].partition("## Under load")[0]
    table = re.sub(r"```.*?```", "", table, flags=re.DOTALL)
    words = {name for code in re.findall(r"`([^`]+)`", table) for name in re.findall(r"[a-z]+(?:_[a-z]+)+", code)}
    names = words - {"bitnet_onnx_", "bitnet_onnx", "_total"}
    assert len(names) > 25
    with serve(package_dir) as server:
        server.chat(max_tokens=3)
        found = server.client.get("/metrics").text
    for name in names:
        if name.startswith("process_") and sys.platform != "linux":
            continue
        assert f"\n{name}" in found or f"\nbitnet_onnx_{name}" in found, name


def test_a_snapshot_holds_what_the_engine_counts(package_dir: Path) -> None:
    with serve(package_dir, keys=(KEY,)) as server:
        server.client.headers["Authorization"] = f"Bearer {KEY}"
        server.chat(max_tokens=3)
        server.complete(n=0)
        for path in ("/health", "/metrics"):
            server.client.get(path)
        text = server.client.get("/metrics").text
        counted = server.engine.metrics()
    snapshot = parse_snapshot(text)
    assert snapshot.engine == counted
    assert snapshot.model == MODEL
    assert snapshot.responses == {200: 1, 400: 1}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tiny_package import write_package

    with serve(write_package(tmp_path_factory.mktemp("page"))) as server:
        text: str = server.client.get("/metrics").text
    return text


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("bitnet_onnx_running 0.0", "", "bitnet_onnx_running is missing"),
        ("bitnet_onnx_running 0.0", "bitnet_onnx_running -1", "is -1,"),
        ("bitnet_onnx_running 0.0", "bitnet_onnx_running NaN", "is nan"),
        ("bitnet_onnx_running 0.0", "bitnet_onnx_running +Inf", "is inf"),
        ("bitnet_onnx_running 0.0", "bitnet_onnx_running eight", "not in the format"),
        ("bitnet_onnx_max_batch 64.0", "bitnet_onnx_max_batch 0", "expected at least 1"),
        ('seconds_bucket{le="0.05"} 0.0', 'seconds_bucket{le="0.05"} 7', "do not rise"),
        ('le="0.05"', 'le="50"', "do not rise"),
        ('le="0.05"', 'le="x"', "do not rise"),
        ("bitnet_onnx_memory_bytes{", "bitnet_onnx_memory_bytes{{", "not in the format"),
    ],
)
def test_nonsense_is_one_line(page: str, old: str, new: str, words: str) -> None:
    assert old in page
    with pytest.raises(InputError, match=words) as raised:
        parse_snapshot(page.replace(old, new))
    assert "\n" not in str(raised.value)


def test_a_flood_of_samples_is_refused() -> None:
    text = "# TYPE a counter\n" + "".join(f'a_total{{n="{number}"}} 1\n' for number in range(6000))
    with pytest.raises(InputError, match="more than 5000"):
        parse_snapshot(text)


@given(st.text(alphabet='abc_{}=",\\\n #0.1eN+-', max_size=200))
def test_any_text_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InputError) as raised:
        parse_snapshot(text)
    assert "\n" not in str(raised.value)


def test_quantiles() -> None:
    durations = Histogram((1.0, 2.0, 4.0), (2, 0, 2, 0), 8.0)
    assert durations.quantile(0.25) == pytest.approx(0.5)
    assert durations.quantile(0.5) == pytest.approx(1.0)
    assert durations.quantile(0.75) == pytest.approx(3.0)
    assert Histogram((1.0,), (0, 5), 50.0).quantile(0.5) == 1.0
    assert Histogram((1.0,), (0, 0), 0.0).quantile(0.5) is None


@given(st.lists(st.integers(0, 50), min_size=4, max_size=4), st.floats(0, 1))
def test_a_quantile_lies_in_the_bucket_that_holds_it(counts: list[int], share: float) -> None:
    bounds = (0.1, 0.5, 2.0)
    found = Histogram(bounds, tuple(counts), 1.0).quantile(share)
    if not sum(counts):
        assert found is None
        return
    assert found is not None
    below = sum(count for count, bound in zip(counts, (*bounds, math.inf), strict=True) if bound <= found)
    assert below <= share * sum(counts) + 1e-6 or found == bounds[-1] or counts[0] == 0
    assert 0 <= found <= 2.0


def test_what_came_since() -> None:
    earlier, later = Histogram((1.0,), (1, 2), 3.0), Histogram((1.0,), (4, 2), 5.0)
    assert later.since(earlier) == Histogram((1.0,), (3, 0), 2.0)
    assert earlier.since(later) == earlier
    assert later.since(Histogram((2.0,), (1, 0), 1.0)) == later
