"""Signals that reach a real process in the middle of its work: nothing is left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bitnet_onnx.cli import interruption, main
from bitnet_onnx.cli._signals import Terminated, termination_raised

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals between processes")

#: Runs the command line, and at one moment tells that it is there and waits.
CHILD = """
import sys, time
from pathlib import Path
import onnx_ir
from bitnet_onnx import by_rows
from bitnet_onnx.cli import interruption, main
from bitnet_onnx.converters.checkpoints import huggingface
from bitnet_onnx.converters.onnx import package
from bitnet_onnx.converters.onnx._data_file import DataFile

moment = sys.argv.pop(1)
owner, name, call, seconds = {
    "reading the tokenizer": (huggingface, "check_foreign_tokenizer", 1, 30),
    "the first matrix": (DataFile, "store", 1, 30),
    "a later matrix": (DataFile, "store", 9, 30),
    "beside other threads": (by_rows, "row_magnitudes", 3, 1),
    "saving the graph": (onnx_ir, "save", 1, 30),
    "the small files": (package, "compact_tokenizer", 1, 30),
    "the old package is away": (Path, "rename", 2, 30),
}[moment]
original, calls = getattr(owner, name), 0

def pause(*arguments, **options):
    global calls
    calls += 1
    if calls == call:
        print("here", flush=True)
        time.sleep(seconds)
    return original(*arguments, **options)

setattr(owner, name, pause)
if moment == "beside other threads":
    by_rows._PART, by_rows._THREADS = 1000, 2
main()
"""
MOMENTS = (
    "reading the tokenizer",
    "the first matrix",
    "a later matrix",
    "beside other threads",
    "saving the graph",
    "the small files",
)


def interrupted(moment: str, numbers: list[signal.Signals], *arguments: str | Path) -> tuple[int, str]:
    """Status and stderr of a conversion that gets signals at a moment."""
    command = [sys.executable, "-P", "-c", CHILD, moment, "convert", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "here\n"
        for number in numbers:
            child.send_signal(number)
        out, err = child.communicate(timeout=20)
    assert out == ""
    return child.returncode, err.strip()


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_interrupt_leaves_nothing(tiny_checkpoint: Callable[[str], Path], tmp_path: Path, moment: str) -> None:
    source = tiny_checkpoint("bitnet")
    assert interrupted(moment, [signal.SIGINT], source, tmp_path / "a" / "out") == (130, "error: interrupted")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["a later matrix", "beside other threads"])
def test_termination_leaves_nothing(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path, moment: str, number: signal.Signals
) -> None:
    result = interrupted(moment, [number], tiny_checkpoint("bitnet"), tmp_path / "out")
    assert result == (128 + number, "error: terminated")
    assert list(tmp_path.iterdir()) == []


def test_impatience_leaves_nothing(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    source = tiny_checkpoint("bitnet")
    status, err = interrupted(
        "beside other threads", [signal.SIGINT, signal.SIGTERM, signal.SIGINT], source, tmp_path / "o"
    )
    assert status in {130, 143}, err
    assert err in {"error: interrupted", "error: terminated"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("moment", ["a later matrix", "the old package is away"])
def test_the_old_package_is_untouched(
    run: Callable[..., object], tiny_checkpoint: Callable[[str], Path], tmp_path: Path, moment: str
) -> None:
    source = tiny_checkpoint("bitnet")
    run("convert", source, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    options = ("--overwrite", "--weights", "int8")
    result = interrupted(moment, [signal.SIGINT], source, tmp_path / "out", *options)
    assert result == (130, "error: interrupted")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with termination_raised():
            signal.raise_signal(signal.SIGHUP)
            with pytest.raises(Terminated) as caught:
                signal.raise_signal(signal.SIGTERM)
        assert caught.value.exit_status == 143
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_command_line_gives_the_signals_back() -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
    ("ended", "said"), [(KeyboardInterrupt(), ("interrupted", 130)), (Terminated(15), ("terminated", 143))]
)
def test_a_lock_that_complains_of_a_signal_does_not_hide_it(ended: BaseException, said: tuple[str, int]) -> None:
    def complain() -> None:
        try:
            raise ended
        finally:
            raise RuntimeError("release unlocked lock")

    with pytest.raises(RuntimeError) as caught:
        complain()
    assert interruption(caught.value) == said
    assert interruption(RuntimeError("of its own")) is None
