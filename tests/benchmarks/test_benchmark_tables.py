"""Reports for people: table, plot, file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from rich.console import Console

from bitnet_onnx.benchmarks import tables
from bitnet_onnx.benchmarks.results import Comparison, Report
from bitnet_onnx.benchmarks.timing import Samples
from bitnet_onnx.errors import InputError

CANDIDATES = {"bitnet": Samples((0.5, 0.6)), "slow peer": Samples((2.0, 2.1)), "fast peer": Samples((4e-5, 4e-5))}
REPORT = Report(
    "kernel",
    {},
    (
        Comparison("decode body", 2, CANDIDATES, multiply_adds=10**9, limit_s=0.275),
        Comparison("decode", 1, CANDIDATES, tokens=1),
        Comparison("load", 1, {"bitnet": Samples((1.0,))}),
    ),
    {
        "roofline": [
            {"threads": 2, "read_bytes_per_s": 2e10, "multiply_adds_per_s": 8e10},
            {"threads": 3, "read_bytes_per_s": 2e10, "multiply_adds_per_s": None},
        ],
        "package": {"bytes": 1_500_000, "files": {}},
        "memory": [
            {
                "candidate": "bitnet",
                "threads": 2,
                "first_token_peak_bytes": 9 * 10**7,
                "peak_bytes": 10**8,
                "anonymous_bytes": None,
            },
            {
                "candidate": "peer",
                "threads": 2,
                "first_token_peak_bytes": None,
                "peak_bytes": None,
                "anonymous_bytes": None,
            },
        ],
    },
    ("A note.",),
)


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    tables.show(REPORT, Console(width=140, highlight=False))
    out = capsys.readouterr().out
    for text in (
        "550.0 ms", "500.0 ms - 600.0 ms", "1.8 GMAC/s", "1.00x", "50 %", "2.05 s", "40 us", "0.00x", "1.8 tokens/s",
        "limits of the machine, 2 threads: reads 20.0 GB/s, 8-bit products 80 GMAC/s",
        "limits of the machine, 3 threads: reads 20.0 GB/s, 8-bit products unknown",
        "package: 1.5 MB",
        "memory of bitnet, 2 threads: peak at the first token 90 MB, at the end 100 MB\n",
        "memory of peer, 2 threads: unknown\n",
        "A note.",
    ):  # fmt: skip
        assert text in out
    # A share of the limit belongs to ours alone.
    assert out.count(" %") == 1


def test_without_matplotlib_one_line_says_so(benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "find_spec", lambda name: None)
    result = benchmark("kernel", "--plot", tmp_path / "x.png")
    assert result.status == 2
    assert "plots need matplotlib, which is not installed: pip install 'bitnet-onnx[bench]'" in " ".join(
        result.err.split()
    )


def test_a_plot_of_no_known_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "find_spec", lambda name: object())
    with pytest.raises(InputError, match=r"x\.exe: plots are written as \.png, \.svg, \.pdf"):
        tables.check_plot(tmp_path / "x.exe")


def test_a_plot(benchmark, tiny_package: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra `bench`)")
    path = tmp_path / "deep" / "x.png"
    tables.plot(REPORT, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        tables.plot(REPORT, tmp_path / "file" / "x.png")
    result = benchmark("model", tiny_package, "--quick", "--threads", "1", "--plot", tmp_path / "model.svg")
    assert result.status == 0
    assert "stock ONNX Runtime" in result.out
    assert (tmp_path / "model.svg").stat().st_size > 1000


def test_a_report_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        REPORT.write(tmp_path / "file" / "report.json")


def test_plots_need_no_display() -> None:
    assert "matplotlib.pyplot" not in sys.modules
