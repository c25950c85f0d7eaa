"""Nothing is told to anybody: what ONNX Runtime would record of its use is switched off."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = "import os, bitnet_onnx.runtime; print(os.environ['ORT_DISABLE_TELEMETRY'])"


@pytest.mark.parametrize(("given", "used"), [(None, "1"), ("0", "0")])
def test_telemetry_is_off_unless_it_is_asked_for(given: str | None, used: str, tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path), "HOME": str(tmp_path)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    if given is not None:
        environment["ORT_DISABLE_TELEMETRY"] = given
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == used
    if used == "1":
        assert list(tmp_path.iterdir()) == []
