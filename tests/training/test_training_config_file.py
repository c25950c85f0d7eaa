"""Configurations as TOML: what is written is read back, and what cannot be is named before anything starts."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest

from bitnet_onnx.errors import InputError
from bitnet_onnx.training._config_values import LIMITS, numbers
from bitnet_onnx.training.config_file import flat, read_config, write_config
from bitnet_onnx.training.settings import (
    BlockWeights,
    Curve,
    EngineName,
    HeadWeights,
    LayerOrder,
    OptimizerName,
    Ramp,
    RateCurve,
    TrainingSettings,
)

SMALL = """
output = "run"
[model]
source = "start"
[data]
train = "texts/a.txt"
[loop]
steps = 100
"""
FULL = """
output = "runs/first"
seed = 7

[model]
tokenizer = "tokenizer.json"
sub_norms = true
weights = "ternary"
activation_bits = 0
head = "int8"

[model.architecture]
model_type = "llama"
hidden_size = 64
rope_theta = 10000.0
rope_scaling = { rope_type = "linear", factor = 2.0 }
layer_types = ["full", "full"]

[data]
train = ["texts/a.txt", "texts/b.jsonl"]
validation = ["texts/v.txt"]
length = 128
answers_only = false
cache = "cache"

[loop]
steps = 1000
batch = 16
evaluate_every = 50
evaluation_windows = 32
checkpoint_every = 100
keep = 3
patience = 4
rollbacks = 1
log_every = 2
measure_every = 10
tensorboard = true

[optimizer]
name = "ternary_muon"
learning_rate = 2e-3
curve = "wsd"
warmup = 20
minimum = 0
decay = 0.3
weight_decay = 0.1
betas = [0.9, 0.99]
epsilon = 1e-10
clip = 0.5
pace = 2.5

[quantization]
strength = { start = 0.1, end = 1, begin = 10, steps = 200, curve = "sigmoid" }
groups = 4
stride = 50
order = "sensitivity"
statistics = "model.statistics"

[losses]
cross_entropy = { start = 1, end = 0.5, steps = 10 }
distillation = 2
temperature = 2.0
relation = 0.5
relation_layer = -2
relation_heads = 8
grid = { end = 0.1, begin = 500 }
teacher = "teacher"

[engine]
name = "onnxruntime"
threads = 2
memory = 4_000_000_000
recompute = true
micro_batch = 4
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("texts/a.txt", "texts/b.jsonl", "texts/v.txt", "tokenizer.json", "model.statistics"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("some text")
    (tmp_path / "start").mkdir()
    (tmp_path / "teacher").mkdir()
    return tmp_path


def _read(folder: Path, text: str) -> TrainingSettings:
    (folder / "run.toml").write_text(text)
    return read_config(folder / "run.toml")


def _with(text: str, name: str, value: str) -> str:
    """The text with a key of a table set to something else, or added."""
    table, _, key = name.rpartition(".")
    lines = text.splitlines()
    if not table:
        return "\n".join([f"{key} = {value}", *(line for line in lines if not line.startswith(f"{key} ="))])
    if f"[{table}]" not in lines:
        lines.append(f"[{table}]")
    start = lines.index(f"[{table}]")
    end = next((i for i in range(start + 1, len(lines)) if lines[i].startswith("[")), len(lines))
    body = [line for line in lines[start + 1 : end] if not line.startswith(f"{key} =")]
    return "\n".join([*lines[: start + 1], f"{key} = {value}", *body, *lines[end:]])


def test_little_is_needed(folder: Path) -> None:
    settings = _read(folder, SMALL)
    assert settings.output == folder / "run"
    assert settings.model.source == str(folder / "start")
    assert settings.data.train == (folder / "texts/a.txt",)
    assert settings.loop.steps == 100
    assert settings.quantization.strength == Ramp(1.0)


def test_every_key_is_read(folder: Path) -> None:
    settings = _read(folder, FULL)
    assert (settings.output, settings.seed) == (folder / "runs/first", 7)
    model, data, loop, optimizer = settings.model, settings.data, settings.loop, settings.optimizer
    assert model.architecture is not None
    assert model.architecture["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert (model.tokenizer, model.sub_norms) == (folder / "tokenizer.json", True)
    assert (model.weights, model.activation_bits, model.head) == (BlockWeights.TERNARY, 0, HeadWeights.INT8)
    assert data.train == (folder / "texts/a.txt", folder / "texts/b.jsonl")
    assert (data.length, data.answers_only, data.cache) == (128, False, folder / "cache")
    assert (loop.batch, loop.keep, loop.patience, loop.tensorboard) == (16, 3, 4, True)
    assert (optimizer.name, optimizer.curve) == (OptimizerName.TERNARY_MUON, RateCurve.WSD)
    assert (optimizer.minimum, optimizer.betas, optimizer.pace) == (0.0, (0.9, 0.99), 2.5)
    assert settings.quantization.strength == Ramp(1.0, 0.1, 10, 200, Curve.SIGMOID)
    assert settings.quantization.order is LayerOrder.SENSITIVITY
    losses = settings.losses
    assert losses.cross_entropy == Ramp(0.5, 1.0, 0, 10, Curve.LINEAR), "it moves linearly where nothing is said"
    assert (losses.distillation, losses.grid) == (Ramp(2.0), Ramp(0.1, begin=500))
    assert losses.teacher == str(folder / "teacher")
    assert (settings.engine.name, settings.engine.memory) == (EngineName.ONNXRUNTIME, 4_000_000_000)
    assert settings.engine.recompute is True


@pytest.mark.parametrize("text", [SMALL, FULL])
def test_what_is_written_is_read_back(text: str, folder: Path) -> None:
    settings = _read(folder, text)
    (folder / "elsewhere").mkdir()
    assert _read(folder / "elsewhere", write_config(settings)) == settings
    assert set(tomllib.loads(write_config(settings))) == {
        "output",
        "seed",
        *(field.name for field in dataclasses.fields(TrainingSettings) if field.name not in {"output", "seed"}),
    }


def test_a_run_that_was_moved_is_the_same(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    settings = _read(folder, FULL)
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "all"
    folder.rename(elsewhere)
    moved = read_config(elsewhere / "run.toml")
    assert flat(moved) == flat(settings)
    longer = dataclasses.replace(moved, loop=dataclasses.replace(moved.loop, steps=2000))
    assert [key for key, value in flat(longer).items() if value != flat(settings)[key]] == ["loop.steps"]


def test_every_number_has_limits() -> None:
    assert set(numbers(TrainingSettings)) == set(LIMITS)


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_numbers_beyond_their_limits_are_named(name: str, folder: Path) -> None:
    limits = LIMITS[name]
    for limit, outside in ((limits.least, limits.least - 1), (limits.most, limits.most * 2 + 1)):
        if abs(outside) > 1 << 62:
            continue
        value = str(outside) if isinstance(outside, int) else repr(outside)
        with pytest.raises(InputError) as raised:
            _read(folder, _with(FULL, name, f"[0.5, {value}]" if name == "optimizer.betas" else value))
        message = str(raised.value)
        assert f"run.toml: {name} is " in message
        assert ": it must be " in message
        assert message.endswith(f" {limit:g}" if isinstance(limit, float) else f" {limit}")


NEAR = {
    "optimiser.name": ('"sgd"', "unknown key 'optimiser'; did you mean optimizer?"),
    "loop.step": ("3", "[loop]: unknown key 'step'; did you mean steps?"),
    "quantization.strength": (
        "{ end = 1, step = 3 }",
        "[quantization.strength]: unknown key 'step'; did you mean steps?",
    ),
    "zzz": ("1", "unknown key 'zzz'; known are output, seed, model, data, loop"),
    "optimizer.name": ('"adam"', "optimizer.name is 'adam': expected adamw"),
    "optimizer.curve": ('"quadratic"', "optimizer.curve is 'quadratic': expected one of cosine, linear, constant, wsd"),
    "model.weights": ("3", "model.weights is 3: expected one of ternary, float"),
    "loop.batch": ("2.5", "loop.batch is 2.5: expected a whole number"),
    "loop.keep": ("true", "loop.keep is True: expected a whole number"),
    "loop.tensorboard": ("1", "loop.tensorboard is 1: expected true or false"),
    "optimizer.learning_rate": ("nan", "optimizer.learning_rate is nan: expected a finite number"),
    "optimizer.epsilon": ('"small"', "optimizer.epsilon is 'small': expected a number"),
    "optimizer.betas": ("[0.9]", "optimizer.betas is [0.9]: expected a list of 2 numbers"),
    "optimizer.clip": ("inf", "optimizer.clip is inf: expected a finite number"),
    "seed": ("-1", "seed is -1: it must be at least 0"),
    "output": ('""', "output is '': expected a string that is not empty"),
    "data.train": ("[]", "data.train is empty: name at least one file"),
    "data.length": ("1", "data.length is 1: it must be at least 2"),
    "data.holdout": ("0.6", "data.holdout is 0.6: it must be at most 0.5"),
    "losses.grid": ("{ start = 1 }", "losses.grid.end is missing"),
    "losses.relation": ("{ end = 1, steps = 3, curve = 'constant' }", "losses.relation.curve is constant with 3 steps"),
    "losses.distillation": ("{ end = 1, curve = 'linear' }", "losses.distillation.curve is linear with 0 steps"),
    "losses.cross_entropy": ("-1", "losses.cross_entropy is -1: it must be at least 0"),
    "engine": ("3", "engine is 3: expected a table"),
    "model.activation_bits": ("4", "model.activation_bits is 4: it must be 8, or 0 for floats"),
    "model.source": ('"a/missing"', "there is no such file or directory"),
    "losses.teacher": ('"smollm"', "losses.teacher is 'smollm': there is no such file or directory, and 'smollm'"),
    "quantization.statistics": ('"missing"', "missing: no such file"),
    "quantization.order": ('"forward"', "quantization.statistics is given, and quantization.order is forward"),
    "quantization.groups": ("99", "quantization.strength of the last group ends at step 5110"),
    "data.cache": (f'"{"x" * 300}"', "expected a path that a file system takes"),
}


@pytest.mark.parametrize("name", NEAR)
def test_what_cannot_be_is_named(name: str, folder: Path) -> None:
    value, message = NEAR[name]
    text = _with(FULL, name, value) if name != "engine" else FULL.replace("[engine]", "[ignored]").split("[ignored]")[0]
    if name == "engine":
        text = f"engine = {value}\n{text}"
    if name == "model.source":
        text = _with(SMALL, name, value)
    with pytest.raises(InputError) as raised:
        _read(folder, text)
    assert str(raised.value).startswith(f"{folder / 'run.toml'}: ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (folder / "runs").exists()


TOGETHER = {
    "no start": ({"model.source": None}, "[model]: none is given of source and architecture"),
    "two starts": ({"model.architecture": "{ hidden_size = 4 }"}, "[model]: both are given of source and architecture"),
    "a tokenizer too many": ({"model.tokenizer": '"tokenizer.json"'}, "model.tokenizer is given: it is for a random"),
    "parts": ({"loop.batch": "6", "engine.micro_batch": "4"}, "loop.batch is 6: it must be a multiple of engine.micro"),
    "nothing to evaluate": ({"loop.evaluate_every": "5"}, "loop.evaluate_every is 5: name data.validation or a data.h"),
    "patience": ({"loop.patience": "5", "data.holdout": "0.1"}, "loop.patience is 5: it counts evaluations"),
    "warm-up": ({"optimizer.warmup": "100"}, "optimizer.warmup is 100: it must be below loop.steps, 100"),
    "both kinds": ({"data.holdout": "0.1", "data.validation": '"texts/v.txt"'}, "data.holdout is 0.1, and data.valid"),
    "floats": (
        {"model.weights": '"float"', "optimizer.name": '"ternary_muon"'},
        "optimizer.name is ternary_muon: it needs model.weights to be ternary",
    ),
    "a grid of floats": ({"model.weights": '"float"', "losses.grid": "1"}, "losses.grid is given: it needs model.weig"),
    "no statistics": ({"quantization.order": '"sensitivity"'}, "quantization.statistics must name a file"),
    "too late": ({"quantization.strength": "{ end = 1, steps = 100 }"}, "last group ends at step 100"),
    "nothing to learn": ({"losses.cross_entropy": "0"}, "[losses]: every weight is 0"),
    "a silent teacher": ({"losses.teacher": '"teacher"'}, "losses.teacher is given: give a weight"),
    "no teacher": (
        {"model.source": None, "model.architecture": "{ hidden_size = 4 }", "losses.relation": "1"},
        "losses.relation is given: it needs losses.teacher where the model starts at random",
    ),
    "the same twice": ({"data.train": '["texts/a.txt", "texts/a.txt"]'}, "a.txt more than once"),
    "a directory": ({"data.train": '"texts"'}, "texts: a directory, not a file"),
    "no file": ({"data.train": '"texts/c.txt"'}, "texts/c.txt: no such file"),
    "no validation": ({"data.validation": '"texts/c.txt"'}, "data.validation names"),
    "no tokenizer": (
        {"model.source": None, "model.architecture": "{ hidden_size = 4 }", "model.tokenizer": '"x.json"'},
        "x.json: there is no such file",
    ),
    "output is a file": ({"output": '"tokenizer.json"'}, "tokenizer.json: a file is there"),
    "a date": ({"model.source": None, "model.architecture": "{ a = { b = 2000-01-01 } }"}, "model.architecture.a.b is"),
    "depth": (
        {"model.source": None, "model.architecture": "{ a = " + "[" * 20 + "]" * 20 + " }"},
        "model.architecture.a nests deeper than 8 levels",
    ),
    "no steps": ({"loop.steps": None}, "loop.steps is missing"),
    "no output": ({"output": None}, "output is missing"),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_what_does_not_fit_together_is_named(name: str, folder: Path) -> None:
    changes, message = TOGETHER[name]
    text = SMALL
    for key, value in changes.items():
        field = key.rpartition(".")[2]
        if value is not None:
            text = _with(text, key, value)
        else:
            text = "\n".join(line for line in text.splitlines() if not line.startswith(f"{field} ="))
    with pytest.raises(InputError) as raised:
        _read(folder, text)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("table", ["model", "data", "loop"])
def test_tables_that_must_be_there(table: str, folder: Path) -> None:
    text = SMALL.replace(f"[{table}]", "[engine]").replace(
        {"model": "source", "data": "train", "loop": "steps"}[table], "threads"
    )
    text = "\n".join(line for line in text.splitlines() if not line.startswith("threads"))
    with pytest.raises(InputError, match=rf"run\.toml: {table} is missing"):
        _read(folder, text)


def test_a_model_of_the_zoo_by_name(folder: Path) -> None:
    settings = _read(folder, _with(SMALL, "model.source", '"smollm2-135m-instruct"'))
    assert settings.model.source == "smollm2-135m-instruct"
