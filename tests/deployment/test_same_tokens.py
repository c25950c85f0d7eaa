"""Every host of a package gives the same greedy tokens: our runtime, onnxruntime, onnxruntime-genai, C++.

Exactly the same with the operator library. On the function bodies the hosts agree with each other exactly, and with
the library in the logits of each step, within `greedy.TOLERANCE`. Node and the browser are held against the same tokens
beside their examples.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path

import cpp_example
import numpy as np
import numpy.typing as npt
import onnxruntime_genai as og
import pytest
from greedy import BITNET_TINY, PROMPT, PROMPT_IDS, TEXT, TOKENS, TOLERANCE, distance, teacher_forced
from package_logits import PackageLogits

from bitnet_onnx.runtime import Device, SamplingParameters, load

COUNT = len(TOKENS)


def of_our_runtime(package: Path, prompt: Sequence[int], library: Path | None) -> tuple[int, ...]:
    model = load(package, device=Device(operator_library=library))
    return model.generate(prompt, SamplingParameters(max_new_tokens=COUNT)).ids


def of_onnxruntime(package: Path, prompt: Sequence[int], library: Path | None) -> tuple[int, ...]:
    """The plainest loop there is: keys and values are passed on, not shared."""
    session = PackageLogits(package, library).session
    past = {
        value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
        for value in session.get_inputs()
        if value.name.startswith("past_key_values")
    }
    tokens: list[int] = []
    ids = list(prompt)
    while len(tokens) < COUNT:
        mask = np.ones((1, len(prompt) + len(tokens)), np.int64)
        outputs = session.run(None, {"input_ids": np.array([ids], np.int64), "attention_mask": mask, **past})
        ids = [int(outputs[0][0, -1].argmax())]
        tokens += ids
        past = dict(zip(past, outputs[1:], strict=True))
    return tuple(tokens)


def genai_model(package: Path, library: Path | None) -> og.Model:
    config = og.Config(str(package.resolve()))
    if library is None:
        return og.Model(config)
    options = {"custom_ops_library": library.name}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    with chdir(library.parent):
        return og.Model(config)


def of_genai(package: Path, prompt: Sequence[int], library: Path | None) -> tuple[int, ...]:
    model = genai_model(package, library)
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + COUNT, do_sample=False)
    generator = og.Generator(model, parameters)
    generator.append_tokens(list(prompt))
    while not generator.is_done():
        generator.generate_next_token()
    return tuple(int(token) for token in generator.get_sequence(0)[len(prompt) :])


def of_cpp(package: Path, prompt: Sequence[int], library: Path | None) -> tuple[int, ...]:
    ids = ",".join(map(str, prompt))
    options = ["--max-new-tokens", COUNT, "--library", "" if library is None else library]
    result = cpp_example.run(cpp_example.program(), package, "--ids", ids, "--print-ids", *options)
    assert result.returncode == 0, result.stderr
    return tuple(map(int, result.stdout.split()))


HOSTS = {"our runtime": of_our_runtime, "onnxruntime": of_onnxruntime, "genai": of_genai, "C++": of_cpp}


@pytest.mark.parametrize("host", HOSTS)
def test_with_the_library_the_tokens_are_the_same(operator_library: Path, host: str) -> None:
    assert HOSTS[host](BITNET_TINY, PROMPT_IDS, operator_library) == TOKENS


def test_the_text_is_that_of_the_tokens() -> None:
    model = load(BITNET_TINY)
    assert tuple(model.encode(PROMPT)) == PROMPT_IDS
    assert model.tokenizer.decode([*PROMPT_IDS, *TOKENS]).endswith(PROMPT + TEXT)


@pytest.fixture(scope="module")
def tokens_of_the_bodies() -> tuple[int, ...]:
    return of_onnxruntime(BITNET_TINY, PROMPT_IDS, None)


@pytest.mark.parametrize("host", [host for host in HOSTS if host != "onnxruntime"])
def test_on_the_bodies_the_hosts_agree(tokens_of_the_bodies: tuple[int, ...], host: str) -> None:
    assert HOSTS[host](BITNET_TINY, PROMPT_IDS, None) == tokens_of_the_bodies


@pytest.fixture(scope="module")
def expected(operator_library: Path) -> npt.NDArray[np.float32]:
    logits = teacher_forced(library=operator_library)
    assert tuple(logits.argmax(axis=1)) == TOKENS
    return logits


def test_the_logits_of_the_bodies_are_near_those_of_the_library(expected: npt.NDArray[np.float32]) -> None:
    assert distance(teacher_forced(), expected) < TOLERANCE


@pytest.mark.parametrize("with_library", [True, False])
def test_the_logits_of_our_runtime(
    expected: npt.NDArray[np.float32], operator_library: Path, with_library: bool
) -> None:
    session = load(BITNET_TINY, device=Device(operator_library=operator_library if with_library else None)).session
    found = session.forward(PROMPT_IDS + TOKENS, session.new_cache())[len(PROMPT_IDS) - 1 : -1]
    if with_library:
        np.testing.assert_array_equal(found, expected)
    else:
        assert distance(found, expected) < TOLERANCE


@pytest.mark.parametrize("with_library", [True, False])
def test_the_logits_of_genai(expected: npt.NDArray[np.float32], operator_library: Path, with_library: bool) -> None:
    model = genai_model(BITNET_TINY, operator_library if with_library else None)
    generator = og.Generator(model, og.GeneratorParams(model))
    rows = []
    for ids in (PROMPT_IDS, *((token,) for token in TOKENS[:-1])):
        generator.append_tokens(list(ids))
        rows.append(np.array(generator.get_output("logits"))[0, -1])
    found = np.stack(rows)
    if with_library:
        np.testing.assert_array_equal(found, expected)
    else:
        assert distance(found, expected) < TOLERANCE


@pytest.mark.zoo
def test_a_real_model_with_the_library(zoo_package: Path, operator_library: Path) -> None:
    prompt = load(zoo_package).encode(PROMPT)
    first, *others = [host(zoo_package, prompt, operator_library) for host in HOSTS.values()]
    assert len(first) == COUNT
    assert others == [first] * len(others)


@pytest.mark.zoo
def test_a_real_model_on_the_bodies(zoo_package: Path) -> None:
    """Our runtime against onnxruntime-genai: tests/converters/test_smollm2.py."""
    prompt = load(zoo_package).encode(PROMPT)
    first, *others = [host(zoo_package, prompt, None) for host in (of_onnxruntime, of_genai, of_cpp)]
    assert len(first) == COUNT
    assert others == [first] * len(others)
