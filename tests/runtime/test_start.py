"""What a cold process does not do before the first token."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tiny_package import write_package

GENERATE = """
import sys
from bitnet_onnx import cli
try:
    cli.main(["infer", sys.argv[1], "--prompt", "a", "--max-new-tokens", "1", "--json"])
except SystemExit as end:
    assert not end.code
print(*sorted({name.partition(".")[0] for name in sys.modules}), *(n for n in sys.modules if n == "numpy.random"))
"""


def test_one_greedy_token_loads_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    package = write_package(tmp_path)
    done = subprocess.run([sys.executable, "-P", "-c", GENERATE, str(package)], capture_output=True, text=True)
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
