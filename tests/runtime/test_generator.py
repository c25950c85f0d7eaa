from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_package import CHAT_TEMPLATE, TinyShape, byte_tokenizer, edit_json, write_package

from bitnet_onnx.errors import BitnetOnnxError, InputError, PackageError, UnsupportedError
from bitnet_onnx.runtime import Device, Message, Model, SamplingParameters, auto_select_device, load
from bitnet_onnx.runtime.generation import Timings

HELLO = [{"role": "user", "content": "hello"}]
SHORT = SamplingParameters(max_new_tokens=8)


def greedy(model: Model, prompt: list[int], count: int) -> list[int]:
    """The definition of greedy generation: everything is read again for each token."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model.session.forward(ids, model.session.new_cache())[-1].argmax()))
    return ids[len(prompt) :]


def without_ends(directory: Path) -> Model:
    """A model that no token stops."""
    edit_json(directory / "generation_config.json", eos_token_id=None)
    (directory / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    return load(directory, threads=1, device=Device())


def test_greedy_generation_is_what_reading_everything_again_gives(model: Model) -> None:
    prompt = model.encode("Once upon a time")
    expected = greedy(model, prompt, 8)
    result = model.generate("Once upon a time", SHORT)
    assert list(result.ids) == expected
    assert model.generate(prompt, SHORT).ids == result.ids
    assert result.finish_reason == "length"
    assert not set(expected) & model.stop_ids


def test_the_stream_yields_every_token_and_all_of_the_text(model: Model) -> None:
    stream = model.stream("Once", SamplingParameters(max_new_tokens=30, temperature=1.0, seed=4))
    events = list(stream)
    result = stream.result()
    assert tuple(event.id for event in events) == result.ids
    assert "".join(event.text for event in events) == result.text
    assert stream.ended


def test_a_result_can_be_had_at_any_time(model: Model) -> None:
    stream = model.stream("Once", SHORT)
    assert stream.result().finish_reason == "cancelled"
    assert stream.result().ids == ()
    first = next(stream)
    assert stream.result().ids == (first.id,)
    assert not stream.ended
    stream.close()
    assert stream.ended
    assert list(stream) == []
    assert stream.result().finish_reason == "cancelled"


def test_timings_count_what_was_done(model: Model) -> None:
    timings = model.generate([1, 2, 3], SHORT).timings
    assert (timings.prefill_tokens, timings.decode_tokens) == (3, 7)
    assert set(timings.as_dict()) >= {"load_s", "prefill_s", "prefill_tokens", "decode_s", "decode_tokens"}
    json.dumps(timings.as_dict())
    assert timings.decode_tokens_per_s == pytest.approx(7 / timings.decode_s)
    assert timings.prefill_tokens_per_s == pytest.approx(3 / timings.prefill_s)
    nothing = Timings(0.0, 0.0, 0, 0.0, 0)
    assert nothing.prefill_tokens_per_s == nothing.decode_tokens_per_s == 0.0


def test_an_end_token_ends_and_is_not_text(model: Model) -> None:
    result = scripted(model, "some words<|im_end|>more").generate("x")
    assert (result.text, result.finish_reason) == ("some words", "stop")
    assert result.ids[-1] in model.stop_ids
    assert len(result.ids) == 11


class _Scripted:
    """A session that wants to say a given text, whatever it reads."""

    def __init__(self, model: Model, ids: list[int]) -> None:
        self._model = model
        self._ids = iter(ids)
        self._real = getattr(model.session, "_real", model.session)

    def new_cache(self) -> Any:
        return self._real.new_cache()

    def step(self, ids: Any, cache: Any) -> Any:
        self._real.step(ids, cache)
        logits = np.zeros(259, np.float32)
        logits[next(self._ids)] = 1
        return logits


def scripted(model: Model, text: str) -> Model:
    model.session = _Scripted(model, byte_tokenizer().encode(text).ids)  # type: ignore[assignment]
    return model


def test_a_stop_string_ends_and_is_not_emitted(model: Model) -> None:
    parameters = SamplingParameters(max_new_tokens=50, stop=("END", "日本"))
    stream = scripted(model, "good ENough. 日曜 END never").stream("x", parameters)
    assert "".join(token.text for token in stream) == "good ENough. 日曜 "
    assert stream.result().finish_reason == "stop"


def test_text_held_back_for_a_stop_string_comes_out_at_the_end(model: Model) -> None:
    result = scripted(model, "all EN<|im_end|>").generate("x", SamplingParameters(max_new_tokens=50, stop=("END",)))
    assert (result.text, result.finish_reason) == ("all EN", "stop")
    result = scripted(model, "all EN").generate("x", SamplingParameters(max_new_tokens=6, stop=("END",)))
    assert (result.text, result.finish_reason) == ("all EN", "length")


def test_no_piece_is_half_a_character(model: Model) -> None:
    text = "né 日本語 👍🏽 fin"
    stream = scripted(model, text).stream("x", SamplingParameters(max_new_tokens=len(text.encode())))
    pieces = [token.text for token in stream]
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)


def test_generation_stops_where_the_context_ends(fresh_package: Path) -> None:
    model = without_ends(fresh_package)
    result = model.generate([5] * 90, SamplingParameters(max_new_tokens=1000))
    assert result.finish_reason == "context"
    assert len(result.ids) == 96 - 90 + 1
    full = model.generate([5] * 96, SamplingParameters(max_new_tokens=1000))
    assert (len(full.ids), full.finish_reason) == (1, "context")
    with pytest.raises(InputError, match="97 tokens, more than the model's context of 96"):
        model.generate([5] * 97)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([-1], "token id -1"),
        ([259], "token id 259 is outside the model's vocabulary of 259"),
        ([1.5], "a prompt is"),
        (["a"], "a prompt is"),
        (7, "a prompt is"),
        (None, "a prompt is"),
        ([], "the prompt is empty"),
        ([{"role": "user"}], "role and content"),
        ([{"role": "user", "content": "a"}, 7], "role and content"),
    ],
)
def test_wrong_prompts_are_refused(model: Model, prompt: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        model.generate(prompt)


def test_an_empty_text_starts_from_the_beginning_token_if_there_is_one(model: Model, fresh_package: Path) -> None:
    assert model.encode("") == [256]
    bare = without_ends(fresh_package)
    with pytest.raises(InputError, match="the prompt is empty"):
        bare.generate("")
    assert list(bare.encode(np.array([1, 2]))) == [1, 2]  # type: ignore[arg-type]


def test_numbers_of_other_libraries_are_ids(model: Model) -> None:
    assert model.encode([np.int32(5), np.int64(6)]) == [5, 6]  # type: ignore[list-item]


def test_chat_answers_messages_and_nothing_else(model: Model) -> None:
    expected = model.generate("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n", SHORT)
    assert model.chat(HELLO, SHORT).ids == expected.ids
    assert model.generate(HELLO, SHORT).ids == expected.ids
    assert model.chat([Message("user", "hello")], SHORT).ids == expected.ids
    for wrong in ("hello", [], [1, 2], None):
        with pytest.raises(InputError, match="chat takes"):
            model.chat(wrong)  # type: ignore[arg-type]


def test_a_conversation_reads_only_what_is_new(model: Model) -> None:
    parameters = SamplingParameters(max_new_tokens=4)
    first = model.chat(HELLO, parameters)
    prompt = model.encode(HELLO)
    assert first.timings.prefill_tokens == len(prompt)
    turns = [*HELLO, {"role": "assistant", "content": "X"}, {"role": "user", "content": "b"}]
    second = model.chat(turns, parameters)
    assert second.timings.prefill_tokens < len(model.encode(turns)) - len(prompt) + 1
    assert list(second.ids) == greedy(model, model.encode(turns), 4)
    # The same again: all but the last token is known.
    assert model.chat(turns, parameters).timings.prefill_tokens == 1
    # Something else begins at the difference; text knows nothing of conversations.
    assert list(model.chat([{"role": "user", "content": "j"}], parameters).ids) == greedy(
        model, model.encode([{"role": "user", "content": "j"}]), 4
    )
    assert model.generate(prompt, parameters).timings.prefill_tokens == len(prompt)


def test_two_conversations_at_once_do_not_mix(model: Model) -> None:
    parameters = SamplingParameters(max_new_tokens=6)
    other = [{"role": "user", "content": "other"}]
    expected = [greedy(model, model.encode(messages), 6) for messages in (HELLO, other)]
    model.stop_ids = frozenset()
    streams = [model.stream(HELLO, parameters), model.stream(other, parameters)]
    found: list[list[int]] = [[], []]
    for _ in range(6):
        for ids, stream in zip(found, streams, strict=True):
            ids.append(next(stream).id)
    assert found == expected


def test_an_interrupt_leaves_a_model_that_still_works(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = model.chat(HELLO, SHORT).ids
    stream = model.stream(HELLO, SHORT)
    next(stream)
    real = model.session.step

    def interrupt(*args: Any) -> Any:
        real(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model.session, "step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            next(stream)
    assert stream.ended
    assert stream.result().finish_reason == "cancelled"
    assert model.chat(HELLO, SHORT).ids == expected


def test_a_package_without_a_template_answers_no_messages(fresh_package: Path) -> None:
    model = without_ends(fresh_package)
    with pytest.raises(UnsupportedError, match="no chat template"):
        model.chat(HELLO)


def test_ends_come_from_the_configuration_and_the_template(fresh_package: Path) -> None:
    edit_json(fresh_package / "generation_config.json", eos_token_id=7)
    ends = load(fresh_package, device=Device(), threads=1).stop_ids
    assert ends == {7, 256, 258}
    plain = CHAT_TEMPLATE.replace("<|im_end|>", "</s>")
    edit_json(fresh_package / "tokenizer_config.json", chat_template=plain, eos_token="no such token")
    assert load(fresh_package, device=Device(), threads=1).stop_ids == {7}


def test_the_penalty_counts_the_prompt(model: Model) -> None:
    favourite = model.generate([1, 2, 3], SamplingParameters(max_new_tokens=1)).ids[0]
    prompt = [favourite, 1, 2, 3]
    again = model.generate(prompt, SamplingParameters(max_new_tokens=20, repetition_penalty=1e6)).ids
    assert favourite not in again
    assert len(set(again)) == len(again)


def test_a_model_that_computes_nan_is_an_error(fresh_package: Path) -> None:
    data = fresh_package / "model.onnx.data"
    data.write_bytes(np.full(data.stat().st_size // 4, np.nan, np.float32).tobytes())
    with pytest.raises(BitnetOnnxError, match="largest logit is nan"):
        load(fresh_package, device=Device(), threads=1).generate("a")


def test_load_selects_a_device(package_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitnet_onnx.runtime.devices.library_path", lambda: None)
    auto_select_device.cache_clear()
    assert load(package_dir).device == Device()
    auto_select_device.cache_clear()
    with pytest.raises(PackageError, match="no such directory"):
        load(package_dir / "absent")


def test_a_context_longer_than_the_first_buffers(tmp_path: Path) -> None:
    model = without_ends(write_package(tmp_path, TinyShape(context_length=700)))
    result = model.generate([9] * 500, SamplingParameters(max_new_tokens=100))
    assert list(result.ids) == greedy(model, [9] * 500, 100)
