"""What recomputation saves, measured in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from gradient_checks import differentiated, stack

_PEAK = """
import re, sys
from pathlib import Path
import numpy as np
from bitnet_onnx.training.autodiff.session import differentiated_session
folder = Path(sys.argv[1])
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
inputs = dict(np.load(folder / "inputs.npz"))
session = differentiated_session((folder / "model.onnx").read_bytes(), 1)
before = peak()
session.run(None, inputs)
print(peak() - before)
"""


def peak(folder: Path, model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> int:
    """Bytes that a run adds to a process."""
    onnx.save(model, folder / "model.onnx")
    np.savez(folder / "inputs.npz", **inputs)
    command = [sys.executable, "-P", "-c", _PEAK, str(folder)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc/self/status, which Linux alone has")
def test_recomputation_takes_less_memory(tmp_path: Path) -> None:
    """Of 8 blocks with 7 MiB of activations each, one is alive."""
    model, inputs, parameters, boundaries = stack(8, 64, batch=4, length=512)
    kept = peak(tmp_path, differentiated(model, parameters), inputs)
    again = peak(tmp_path, differentiated(model, parameters, boundaries), inputs)
    assert kept > 30 << 20
    assert again < 0.6 * kept
