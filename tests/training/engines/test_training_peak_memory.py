from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

_SUPPORT = Path(__file__).parents[2] / "support"
#: A process that takes two steps and says what it estimated and the most that it held.
_MEASURE = f"""
import json, sys
sys.path.insert(0, {str(_SUPPORT)!r})
from engine_graphs import decoder_inputs, decoder_store, small_decoder
from bitnet_onnx.training.engines.current import CurrentEngine
from bitnet_onnx.training.engines.memory import MemoryModel
from bitnet_onnx.training.settings import EngineSettings
size, layers, length, batch, recompute = json.loads(sys.argv[1])
graph = small_decoder(hidden_size=size, num_hidden_layers=layers, length=length)
store = decoder_store(graph)
engine = CurrentEngine(graph, store, EngineSettings(threads=1, recompute=recompute))
for _ in range(2):
    engine.accumulate(decoder_inputs(graph, batch, length))
with open("/proc/self/status", encoding="ascii") as file:
    peak = next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM"))
estimate = MemoryModel(graph, length, moments=0).estimate(batch, recompute=recompute)
print(json.dumps([estimate.total, peak]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the most that a process held is read from /proc")
@pytest.mark.parametrize(
    "case",
    [(64, 2, 32, 2, False), (128, 4, 256, 8, False), (128, 4, 256, 8, True)],
    ids=["small", "large", "recompute"],
)
def test_the_estimate_is_what_a_process_takes(case: tuple[int, int, int, int, bool]) -> None:
    command = [sys.executable, "-P", "-c", _MEASURE, json.dumps(case)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    estimate, peak = json.loads(said)
    assert 0.77 * peak < estimate < 1.3 * peak
