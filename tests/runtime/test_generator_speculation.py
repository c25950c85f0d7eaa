"""Guessed tokens change no generation of a single sequence."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_package import CHAT_TEMPLATE

from bitnet_onnx.converters import convert
from bitnet_onnx.errors import InputError
from bitnet_onnx.runtime import Device, Model, PackageInfo, SamplingParameters, Token, load

Both = tuple[Model, Model]


@pytest.fixture(scope="module")
def both(tiny_checkpoint: Callable[[str], Path], operator_library: Path, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("generator") / "package"
    convert(tiny_checkpoint("untied_gqa"), path)
    (path / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    device = Device(operator_library=operator_library)
    return load(path, threads=1, device=device), load(path, threads=1, device=device, speculate=6)


def events(model: Model, prompt: list[int], parameters: SamplingParameters) -> tuple[list[Token], str]:
    stream = model.stream(prompt, parameters)
    return list(stream), stream.result().finish_reason


@settings(max_examples=60)
@given(
    prompt=st.lists(st.integers(3, 6), min_size=1, max_size=90),
    most=st.integers(1, 60),
    temperature=st.sampled_from([0.0, 0.3]),
    bias=st.sampled_from([(), ((4, 100.0), (5, 99.8))]),
    stop=st.lists(st.text("ab e", min_size=1, max_size=2), max_size=1).map(tuple),
)
def test_every_token_is_the_same_as_without(
    both: Both,
    prompt: list[int],
    most: int,
    temperature: float,
    bias: tuple[tuple[int, float], ...],
    stop: tuple[str, ...],
) -> None:
    parameters = SamplingParameters(
        max_new_tokens=most, temperature=temperature, seed=3, repetition_penalty=1.01, logit_bias=bias, stop=stop
    )
    plain, guessing = (events(model, prompt, parameters) for model in both)
    assert plain == guessing


def test_a_text_that_repeats_takes_few_calls_to_the_end_of_the_context(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model = both
    context = model.package.architecture.context_length
    parameters = SamplingParameters(max_new_tokens=10_000, logit_bias=((7, 100.0),))
    calls: list[int] = []
    forward, step = model.session.forward, model.session.step
    monkeypatch.setattr(model.session, "forward", lambda ids, cache: calls.append(len(ids)) or forward(ids, cache))
    monkeypatch.setattr(model.session, "step", lambda ids, cache: calls.append(len(ids)) or step(ids, cache))
    result = model.generate([7] * 9, parameters)
    assert (result.ids, result.finish_reason) == ((7,) * (context - 8), "context")
    assert len(calls) < context / 4
    assert max(calls[1:]) == 7


def test_a_stream_that_ends_within_a_draft_leaves_a_cache_for_the_next(both: Both) -> None:
    plain, guessing = both
    talk = [{"role": "user", "content": "again and again and again and again"}]
    parameters = SamplingParameters(max_new_tokens=30, logit_bias=((7, 100.0), (9, 99.9)))
    for end in range(1, 12):
        stream = guessing.stream(talk, parameters)
        for _ in range(end):
            next(stream)
        stream.close()
        longer = [*talk, {"role": "assistant", "content": "x" * end}, {"role": "user", "content": "again and again"}]
        assert guessing.chat(longer, parameters).ids == plain.chat(longer, parameters).ids


def test_without_the_library_nothing_is_guessed(package: PackageInfo, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        model = Model(package, Device(), threads=1, speculate=6)
    assert "speculate is idle" in caplog.text
    assert model.generate([5, 6] * 8).ids == Model(package, Device(), threads=1).generate([5, 6] * 8).ids


@pytest.mark.parametrize("wrong", [-1, 33, True, 1.5])
def test_drafts_have_a_length(package: PackageInfo, wrong: int) -> None:
    with pytest.raises(InputError, match="speculate is"):
        Model(package, Device(), speculate=wrong)
