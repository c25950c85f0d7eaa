"""The teacher of a training run."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bitnet_models import CASES, write
from exports import write_source
from package_logits import PackageLogits
from tiny_models import TINY, tokenizer, write_checkpoint
from training_starts import LLAMA, random_start

from bitnet_onnx.converters import GgufOptions, convert, export
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.errors import InputError, ZooError
from bitnet_onnx.policy import Policy, Precision, Weights
from bitnet_onnx.training.settings import LossSettings, ModelSettings, Ramp
from bitnet_onnx.training.start import Start, open_start
from bitnet_onnx.training.teacher import Teacher, open_teacher, relation_heads, relation_layer

FLOAT = Policy(Precision(Weights.FLOAT32), Precision(Weights.FLOAT32))
DISTILLATION = LossSettings(distillation=Ramp(1.0))
RELATION = LossSettings(relation=Ramp(1.0))
BOTH = LossSettings(distillation=Ramp(1.0), relation=Ramp(1.0))
IDS = np.random.default_rng(8).integers(0, 515, (2, 9))


@contextmanager
def start_of(source: Path, *, sub_norms: bool = False) -> Iterator[Start]:
    with open_start(ModelSettings(str(source), sub_norms=sub_norms)) as start:
        yield start


def opened(losses: LossSettings, start: Start, max_length: int = 16) -> Teacher:
    teacher = open_teacher(losses, start, max_length=max_length, threads=1)
    assert teacher is not None
    return teacher


def assert_logits(teacher: Teacher, package: Path) -> None:
    ids = IDS % teacher.spec.vocab_size
    found, run = teacher(ids), PackageLogits(package)
    assert set(found) == {"teacher.logits"}
    for row, logits in zip(ids, found["teacher.logits"], strict=True):
        np.testing.assert_allclose(logits, run(row), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["untied_gqa", "gpt2", "gemma2_caps", "bitnet", "opt_350m"])
def test_logits_are_those_of_the_float_model(name: str, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", name)
    convert(source, tmp_path / "package", policy=FLOAT)
    with start_of(source) as start:
        for losses in (DISTILLATION, replace(DISTILLATION, teacher=str(source))):
            assert_logits(opened(losses, start), tmp_path / "package")


def test_ones_own_start_teaches_without_the_sub_norms_that_were_put_in(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "untied_gqa")
    convert(source, tmp_path / "package", policy=FLOAT)
    with start_of(source, sub_norms=True) as start:
        teacher = opened(DISTILLATION, start)
        assert start.spec.attention_sub_norm
        assert not teacher.spec.attention_sub_norm
        assert_logits(teacher, tmp_path / "package")


def test_a_package_or_a_gguf_teaches_with_what_it_was_rounded_to(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "untied_gqa")
    convert(source, tmp_path / "int4")
    export(source, tmp_path / "model.gguf", GgufOptions())
    with start_of(source) as start:
        for index, path in enumerate((tmp_path / "int4", tmp_path / "model.gguf")):
            # Masters of ternary matrices that are floats now.
            convert(path, tmp_path / f"floats{index}", policy=FLOAT)
            assert_logits(opened(replace(DISTILLATION, teacher=str(path)), start), tmp_path / f"floats{index}")


def test_masters_teach_as_they_are_rounded(tmp_path: Path) -> None:
    source = write(tmp_path / "source", CASES["bitnet_online"]())
    rounded = Policy(Precision(Weights.AUTO, activation_bits=0), Precision(Weights.FLOAT32))
    convert(source, tmp_path / "package", policy=rounded)
    with start_of(source) as start:
        assert_logits(opened(DISTILLATION, start), tmp_path / "package")
        assert_logits(opened(replace(DISTILLATION, teacher=str(source)), start), tmp_path / "package")


def test_relation_states(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "tied_mha")
    with start_of(source) as start:
        both = opened(replace(BOTH, relation_layer=0), start)
        found = both(IDS)
        assert {name: value.shape for name, value in found.items()} == {
            "teacher.logits": (2, 9, 515),
            **{f"teacher.{name}": (2, 9, 64) for name in ("query", "key", "value")},
        }
        x = start.read("embed_tokens.weight")[IDS]
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * start.read("layers.0.input_norm.weight")
        value = x @ start.read("layers.0.attn.v_proj.weight").T
        np.testing.assert_allclose(found["teacher.value"], value, rtol=0, atol=1e-5)
        # A rotation keeps lengths.
        query = x @ start.read("layers.0.attn.q_proj.weight").T
        np.testing.assert_allclose(
            np.linalg.norm(found["teacher.query"], axis=-1), np.linalg.norm(query, axis=-1), rtol=1e-5
        )
        states = opened(replace(RELATION, relation_layer=0), start)
        alone = states(IDS)
        assert "teacher.logits" not in alone
        for name, value in alone.items():
            np.testing.assert_allclose(value, found[name], rtol=0, atol=1e-6)
        # Weights that nothing needs are not even read.
        assert states.nbytes < both.nbytes / 2


def test_results_of_one_call_outlive_the_next(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "tied_mha")
    with start_of(source) as start:
        teacher = opened(DISTILLATION, start)
    first = teacher(IDS)["teacher.logits"]
    kept = first.copy()
    other = teacher(IDS[:1, :3] + 1)["teacher.logits"]
    assert other.shape == (1, 3, 515)
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(teacher(IDS)["teacher.logits"], kept)


def test_no_teacher_where_no_loss_asks_for_one() -> None:
    assert open_teacher(LossSettings(), random_start(), max_length=8) is None


def test_a_random_start_does_not_teach() -> None:
    with pytest.raises(InputError, match=r"losses.teacher is missing: a random start has nothing to teach"):
        open_teacher(DISTILLATION, random_start(), max_length=8)


def test_teachers_that_do_not_fit(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "tied_mha")
    losses = replace(DISTILLATION, teacher=str(source))
    with pytest.raises(InputError, match=r"losses.teacher source: vocab_size is 515, that of the model 300"):
        open_teacher(losses, random_start(), max_length=8)
    student = random_start(dict(LLAMA) | {"vocab_size": 515})
    with pytest.raises(InputError, match=r"its tokenizer has other tokens than the model's: \d+ differ") as raised:
        open_teacher(losses, student, max_length=8)
    assert "\n" not in str(raised.value)
    with pytest.raises(ZooError, match="neither an existing path nor a model of the zoo"):
        open_teacher(replace(losses, teacher="no-such-model"), student, max_length=8)
    with start_of(source) as start, pytest.raises(InputError, match=r"losses.teacher source: length is 513"):
        open_teacher(losses, start, max_length=513)
    with (
        start_of(source) as start,
        pytest.raises(InputError, match=r"relation_layer is 2: losses.teacher source has 2"),
    ):
        open_teacher(replace(RELATION, teacher=str(source), relation_layer=2), start, max_length=8)


def test_a_tokenizer_of_the_same_tokens_with_other_rules(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_checkpoint(tmp_path / "source", TINY["tied_mha"])
    losses = replace(DISTILLATION, teacher=str(source))
    student = random_start(dict(LLAMA) | {"vocab_size": 515})
    with caplog.at_level(logging.WARNING):
        assert open_teacher(losses, student, max_length=8) is not None
        assert not caplog.records
        document = json.loads(tokenizer(515).to_str())
        document["pre_tokenizer"]["add_prefix_space"] = True
        other = replace(student, tokenizer={"tokenizer.json": json.dumps(document).encode()})
        assert open_teacher(losses, other, max_length=8) is not None
    assert ["same tokens" in record.message for record in caplog.records] == [True]


def spec(**changes: object) -> DecoderSpec:
    return random_start(dict(LLAMA) | changes).spec


def test_layers_and_heads_of_the_relation() -> None:
    assert relation_layer(RELATION, spec()) == 2
    assert relation_layer(replace(RELATION, relation_layer=-3), spec()) == 0
    for layer in (3, -4):
        with pytest.raises(InputError, match=f"relation_layer is {layer}: the model has 3 layers"):
            relation_layer(replace(RELATION, relation_layer=layer), spec())
    assert relation_heads(RELATION, spec(), spec()) == 4
    # Nine heads of 64 features, three of them for keys, as SmolLM2-135M has.
    small = spec(hidden_size=576, num_attention_heads=9, num_key_value_heads=3)
    assert relation_heads(RELATION, small, small) == 8
    assert relation_heads(RELATION, small, spec()) == 8
    assert relation_heads(replace(RELATION, relation_heads=3), small, small) == 3
    with pytest.raises(InputError, match=r"relation_heads is 9: .* 576 and 192 of the model, 576 and 192 of its"):
        relation_heads(replace(RELATION, relation_heads=9), small, small)
    with pytest.raises(InputError, match="relation_heads is 3: it must divide"):
        relation_heads(replace(RELATION, relation_heads=3), small, spec())
