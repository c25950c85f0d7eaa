"""The main job on a real model: the default conversion of SmolLM2-135M-Instruct."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from genai import genai_tokens

from bitnet_onnx.runtime import Device, SamplingParameters, load

pytestmark = pytest.mark.zoo

QUESTION = [{"role": "user", "content": "What is the capital of Japan?"}]
MEMORY_LIMIT = 1_000_000_000
CONVERT = """
import resource, sys
from bitnet_onnx.converters import convert
convert(sys.argv[1], sys.argv[2])
if sys.platform == "linux":
    # Unlike ru_maxrss this does not begin with what the parent had when it forked.
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(int(line.split()[1]) * 1024)
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_it_answers_the_question(zoo_package: Path) -> None:
    generation = load(zoo_package).chat(QUESTION, SamplingParameters(max_new_tokens=32))
    assert "Tokyo" in generation.text
    assert generation.finish_reason == "stop"


def test_genai_opens_the_directory_and_agrees(zoo_package: Path) -> None:
    model = load(zoo_package, device=Device())
    prompt = model.encode(QUESTION)
    ours = model.generate(prompt, SamplingParameters(max_new_tokens=24)).ids
    theirs = genai_tokens(zoo_package, prompt, 24)
    # The end token is ours to report; genai stops at it as well.
    assert theirs[: len(ours)] == list(ours)
    assert "Tokyo" in model.tokenizer.decode(theirs)


@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is read through the module resource")
def test_a_second_conversion_is_the_same_and_takes_little_memory(
    zoo_model: Path, zoo_package: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-P", "-c", CONVERT, str(zoo_model), str(tmp_path / "again")]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(result.stdout) < MEMORY_LIMIT
    names = {path.name for path in zoo_package.iterdir()}
    assert names == {path.name for path in (tmp_path / "again").iterdir()}
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (zoo_package / name).read_bytes(), name
