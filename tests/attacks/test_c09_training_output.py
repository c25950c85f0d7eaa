"""Class 9 for training: directories that are none of the run's are refused, and nothing in them is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import write_config

from bitnet_onnx.cli import main


def _refused(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["train", *map(str, arguments)])
    out, err = capfd.readouterr()
    assert (caught.value.code, out) == (2, "")
    return err.splitlines()[-1]


@pytest.mark.parametrize("name", ["config.json", "model.onnx"])
@pytest.mark.parametrize("option", ["--fresh", "--check", None])
def test_a_model_is_no_run(name: str, option: str | None, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path)
    output = tmp_path / "run"
    (output / "checkpoints").mkdir(parents=True)
    (output / name).write_text("a model")
    (output / "report.html").write_text("its page")
    before = sorted(output.rglob("*"))
    line = _refused(capfd, config, *([option] if option else []))
    assert line == f"error: output is {output}: a model is there, with {name}; choose another"
    assert sorted(output.rglob("*")) == before


def test_a_directory_that_cannot_be_made(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path)
    output = tmp_path / "words.txt" / "run"
    line = _refused(capfd, config, "--output", output)
    assert line.startswith(f"error: output is {output}: it cannot be written: ")
    assert line.endswith("; choose another")
