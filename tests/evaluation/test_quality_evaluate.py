"""Packages on texts: against a direct computation, against themselves, against checkpoints."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_models import TINY, write_checkpoint
from tiny_package import TinyShape, write_package

from bitnet_onnx.converters import convert
from bitnet_onnx.converters.model import open_model
from bitnet_onnx.errors import BitnetOnnxError, InputError, PackageError
from bitnet_onnx.evaluation._linear import SourceRule
from bitnet_onnx.evaluation.quality import QualityOptions, WindowRule, _reader, evaluate
from bitnet_onnx.evaluation.reference import Prompt, forward
from bitnet_onnx.policy import Policy, Precision, Weights
from bitnet_onnx.runtime import PackageInfo
from bitnet_onnx.runtime.tokenizer import TextTokenizer

FLOAT = Precision(Weights.FLOAT32)
TEXT = "In the beginning God created the heaven and the earth. \u00bfQu\u00e9?\n" * 4
OPTIONS = QualityOptions(WindowRule(32))


@pytest.fixture(scope="module")
def package(tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("quality") / "float"
    convert(tiny_checkpoint("untied_gqa"), output, policy=Policy(FLOAT, FLOAT))
    return output


@pytest.fixture(scope="module")
def rounded(tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("quality") / "int4"
    convert(tiny_checkpoint("untied_gqa"), output)
    return output


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8", newline="")
    return path


def surprises(source: Path, ids: list[int]) -> np.ndarray:
    """`-log p` of every token but the first, by the numpy forward pass and float64."""
    with open_model(source) as model:
        logits = forward(model.spec, model.tensors, SourceRule(model), [Prompt(tuple(ids))])[0].logits
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return -wide[np.arange(len(ids) - 1), ids[1:]]


def test_against_a_direct_computation(
    package: Path, tiny_checkpoint: Callable[[str], Path], text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = TextTokenizer(PackageInfo.open(package)).encode(TEXT, parse_special=False, add_bos=False)
    windows = [ids[start : start + 32] for start in range(0, len(ids) - 31, 32)]
    expected = np.concatenate([surprises(tiny_checkpoint("untied_gqa"), window) for window in windows])
    found = evaluate(package, texts=[text], options=OPTIONS)
    (one,) = found.texts
    assert one.nats == pytest.approx(expected.mean(), rel=1e-5)
    assert one.perplexity == pytest.approx(math.exp(expected.mean()), rel=1e-4)
    assert (one.windows, one.tokens) == (len(windows), 31 * len(windows))
    means = expected.reshape(len(windows), 31).mean(axis=1)
    assert one.nats_error == pytest.approx(means.std(ddof=1) / math.sqrt(len(windows)), rel=1e-4)
    # Every token is a byte here, and the two of a character count with its last: their windows may differ by one.
    assert abs(one.bytes - one.tokens) <= 2 * len(windows)
    assert one.bits_per_byte == pytest.approx(expected.sum() / math.log(2) / one.bytes, rel=1e-5)
    assert one.comparison is None
    assert found.total is not None
    assert (found.total.nats, found.total.tokens) == (one.nats, one.tokens)
    # The same a few rows at a time.
    monkeypatch.setattr(_reader, "_LOGITS_BYTES", 5 * 4 * 515)
    (pieces,) = evaluate(package, texts=[text], options=OPTIONS).texts
    assert pieces.nats == pytest.approx(one.nats, rel=1e-6)


@pytest.mark.parametrize(
    ("rule", "skipped", "beginning"),
    [
        (WindowRule(32, context=20), 19, ()),
        (WindowRule(32, beginning=True), 0, (1,)),
        (WindowRule(32, context=5, beginning=True), 5, (1,)),
    ],
)
def test_other_rules(
    package: Path,
    tiny_checkpoint: Callable[[str], Path],
    text: Path,
    rule: WindowRule,
    skipped: int,
    beginning: tuple[int, ...],
) -> None:
    ids = TextTokenizer(PackageInfo.open(package)).encode(TEXT, parse_special=False, add_bos=False)
    windows = [[*beginning, *ids[start : start + 32]] for start in range(0, len(ids) - 31, 32)]
    expected = [surprises(tiny_checkpoint("untied_gqa"), window)[skipped:] for window in windows]
    (found,) = evaluate(package, texts=[text], options=QualityOptions(rule)).texts
    assert found.tokens == sum(map(len, expected))
    assert found.nats == pytest.approx(np.concatenate(expected).mean(), rel=1e-5)


def test_a_stride_reads_what_stands_before(package: Path, tiny_checkpoint: Callable[[str], Path], text: Path) -> None:
    ids = TextTokenizer(PackageInfo.open(package)).encode(TEXT, parse_special=False, add_bos=False)
    expected = []
    for start in range(0, len(ids) - 31, 8):
        window = surprises(tiny_checkpoint("untied_gqa"), ids[start : start + 32])
        expected.append(window if start == 0 else window[-8:])
    (found,) = evaluate(package, texts=[text], options=QualityOptions(WindowRule(32, stride=8))).texts
    assert found.nats == pytest.approx(np.concatenate(expected).mean(), rel=1e-5)


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(tmp_path: Path, text: Path) -> None:
    source = write_checkpoint(tmp_path / "source", TINY["untied_gqa"])
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = np.zeros_like(tensors["lm_head.weight"])
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    convert(source, tmp_path / "package", policy=Policy(FLOAT, FLOAT))
    (found,) = evaluate(tmp_path / "package", texts=[text], options=OPTIONS).texts
    assert found.perplexity == pytest.approx(515, rel=1e-9)
    assert found.nats_error == pytest.approx(0, abs=1e-12)


def test_a_model_is_its_own_reference(rounded: Path, text: Path) -> None:
    found = evaluate(rounded, texts=[text, text], reference=rounded, options=OPTIONS)
    assert found.total is not None
    for one in (*found.texts, found.total):
        other = one.comparison
        assert other is not None
        assert (other.divergence, other.divergence_p99, other.divergence_max, other.agreement) == (0, 0, 0, 1)
        assert (other.difference, other.difference_error, other.perplexity_ratio) == (0, 0, 1)
        assert (other.perplexity, other.bits_per_byte) == (one.perplexity, one.bits_per_byte)
    assert found.total.tokens == 2 * found.texts[0].tokens
    assert found.total.nats == pytest.approx(found.texts[0].nats)


def test_against_another_package(package: Path, rounded: Path, text: Path) -> None:
    """Difference and error are those of the windows, paired."""
    found = evaluate(rounded, texts=[text], reference=package, options=OPTIONS).texts[0]
    alone = evaluate(package, texts=[text], options=OPTIONS).texts[0]
    other = found.comparison
    assert other is not None
    assert other.perplexity == pytest.approx(alone.perplexity, rel=1e-9)
    assert other.difference == pytest.approx(found.nats - alone.nats)
    assert other.perplexity_ratio == pytest.approx(found.perplexity / alone.perplexity)
    assert found.nats_error is not None
    assert other.difference_error is not None
    assert 0 < other.difference_error < found.nats_error
    assert 0 < other.divergence < other.divergence_p99 <= other.divergence_max
    assert 0 < other.agreement < 1


def test_a_checkpoint_as_the_reference(
    package: Path,
    rounded: Path,
    tiny_checkpoint: Callable[[str], Path],
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    steps: list[str] = []
    found = evaluate(
        rounded,
        texts=[text],
        reference=tiny_checkpoint("untied_gqa"),
        options=OPTIONS,
        progress=lambda name, done, total: steps.append(f"{Path(name).name} {done} of {total}"),
    )
    assert list(temporary.iterdir()) == []
    assert found.reference is not None
    assert (found.reference.converted, found.reference.bits_per_weight) == ("float32", 32)
    windows = found.texts[0].windows
    assert steps[0].startswith("converting the reference ")
    assert steps[-windows:] == [f"text.txt {done} of {windows}" for done in range(1, windows + 1)]
    same = evaluate(rounded, texts=[text], reference=package, options=OPTIONS)
    assert found.texts == same.texts
    # It is gone when something fails, too.
    with pytest.raises(InputError, match="only models of one vocabulary"):
        evaluate(write_package(tmp_path), texts=[text], reference=tiny_checkpoint("untied_gqa"), options=OPTIONS)
    assert list(temporary.iterdir()) == []


def test_a_model_trained_to_be_ternary_stays_so_as_the_reference(
    tiny_checkpoint: Callable[[str], Path], text: Path, tmp_path: Path
) -> None:
    source = tiny_checkpoint("bitnet")
    convert(source, tmp_path / "package", policy=Policy(Precision(Weights.AUTO), FLOAT))
    found = evaluate(tmp_path / "package", texts=[text], reference=source, options=OPTIONS)
    assert found.reference is not None
    assert found.reference.converted == "ternary blocks, float32 head"
    assert found.texts[0].comparison is not None
    assert found.texts[0].comparison.divergence == 0


def test_vocabularies_must_be_the_same(package: Path, text: Path, tmp_path: Path) -> None:
    other = write_package(tmp_path, TinyShape())
    with pytest.raises(InputError, match="a vocabulary of 515 tokens, its reference one of 259"):
        evaluate(package, texts=[text], reference=other, options=OPTIONS)
    source = write_checkpoint(tmp_path / "source", TINY["untied_gqa"])
    tokenizer = json.loads((source / "tokenizer.json").read_text("utf-8"))
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (source / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(InputError, match=r"has the token 'a' as \d+, its reference as \d+: only models"):
        evaluate(package, texts=[text], reference=source, options=OPTIONS)


def test_activations(rounded: Path, text: Path, operator_library: Path) -> None:
    floats = replace(OPTIONS, activation_bits=0)
    found = evaluate(rounded, texts=[text], reference=rounded, options=floats)
    assert found.package.activations == "float"
    assert found.texts[0].comparison is not None
    assert found.texts[0].comparison.divergence > 0
    with pytest.raises(InputError, match="activation_bits is 5"):
        evaluate(rounded, texts=[text], options=replace(OPTIONS, activation_bits=5))


def test_logits_that_are_not_finite(tmp_path: Path, text: Path) -> None:
    directory = write_package(tmp_path)
    data = directory / "model.onnx.data"
    data.write_bytes(b"\xff" * data.stat().st_size)  # NaN throughout
    with pytest.raises(BitnetOnnxError, match="gives logits that are not finite in the tokens 0 to 32 of"):
        evaluate(directory, texts=[text], options=OPTIONS)


def test_what_cannot_be_evaluated(package: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to evaluate"):
        evaluate(package)
    with pytest.raises(PackageError, match="no such directory"):
        evaluate(tmp_path / "none", texts=[text])
    with pytest.raises(InputError, match="tokens do not fill a window of 512"):
        evaluate(package, texts=[text], options=QualityOptions(WindowRule(512)))
    with pytest.raises(InputError, match="a window of 513 tokens does not fit the model's context of 512"):
        evaluate(package, texts=[text], options=QualityOptions(WindowRule(512, beginning=True)))
    with pytest.raises(InputError, match="there is no such file or directory"):
        evaluate(package, texts=[text], reference=tmp_path / "none", options=OPTIONS)
