"""What a cold process does not do before the first token."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_package import write_package

COMMAND = """
from bitnet_onnx.cli import main
try:
    main(["infer", sys.argv[1], "--prompt", "a", "--max-new-tokens", "1", "--json"])
except SystemExit as end:
    assert not end.code
"""
FUNCTION = """
import bitnet_onnx
bitnet_onnx.load(sys.argv[1]).generate("a", bitnet_onnx.SamplingParameters(max_new_tokens=1))
"""
LIST = """
print(*{name.partition(".")[0] for name in sys.modules}, *sys.modules.keys() & {"numpy.random"})
"""


@pytest.mark.parametrize("way", [COMMAND, FUNCTION], ids=["command", "function"])
def test_one_greedy_token_loads_nothing_that_it_does_not_need(tmp_path: Path, way: str) -> None:
    package = write_package(tmp_path)
    code = f"import sys{way}{LIST}"
    done = subprocess.run([sys.executable, "-P", "-c", code, str(package)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.splitlines()[-1].split())
    assert {"numpy", "onnxruntime", "tokenizers"} <= loaded
    assert not loaded & {
        "rich",
        "jinja2",
        "onnx",
        "onnx_ir",
        "onnxscript",
        "gguf",
        "safetensors",
        "subprocess",
        "numpy.random",
    }
