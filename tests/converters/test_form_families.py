"""Every family in stock and in standard operators computes what transformers computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from family_models import FAMILY_MODELS, GOLDEN, shapes_of, write_family_checkpoint
from package_logits import PackageLogits
from tiny_models import TOLERANCE, columns, prompts

from bitnet_onnx.converters import convert
from bitnet_onnx.converters.families import FAMILIES
from bitnet_onnx.package_format import Operators
from bitnet_onnx.policy import Policy, Precision, Weights

FLOAT = Policy(Precision(Weights.FLOAT32), Precision(Weights.FLOAT32))
#: One of each family; `test_family_golden` has all their variants, and the decoder emitter is the same.
MODELS = {str(model.config["model_type"]): name for name, model in reversed(FAMILY_MODELS.items())}


def test_the_models_are_of_every_family() -> None:
    # BitNet has a test of its own, and Gemma 3's other configuration is that of the text model with pictures around it.
    assert set(FAMILIES) - set(MODELS) <= {"bitnet", "gemma3"}


@pytest.mark.parametrize("operators", [Operators.STOCK, Operators.STANDARD])
@pytest.mark.parametrize("name", MODELS.values())
def test_logits(name: str, operators: Operators, tmp_path: Path) -> None:
    model = FAMILY_MODELS[name]
    source = write_family_checkpoint(tmp_path / name, model, shapes_of(name))
    package = tmp_path / "package"
    spec = convert(source, package, policy=FLOAT, operators=operators, context_length=model.context).spec
    run, chosen = PackageLogits(package), columns(spec.vocab_size)[::4]
    given = prompts(spec.vocab_size, model.prompt_lengths)
    with np.load(GOLDEN / f"{name}.npz") as golden:
        expected = [golden[f"prompt{index}"] for index in range(len(given))]
    for chunk in (None, 13):
        np.testing.assert_allclose(run(given[-1], chunk)[:, chosen], expected[-1], rtol=0, atol=TOLERANCE)
    for found, logits in zip(run.ragged(given), expected, strict=True):
        np.testing.assert_allclose(found[:, chosen], logits, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("operators", [Operators.STOCK, Operators.STANDARD])
@pytest.mark.parametrize("name", MODELS.values())
def test_default_precision_is_near(name: str, operators: Operators, tmp_path: Path) -> None:
    model = FAMILY_MODELS[name]
    source = write_family_checkpoint(tmp_path / name, model, shapes_of(name))
    package = tmp_path / "package"
    spec = convert(source, package, operators=operators, context_length=model.context).spec
    domains = {node.domain for node in onnx.load(package / "model.onnx", load_external_data=False).graph.node}
    assert domains == ({"", "com.microsoft"} if operators is Operators.STOCK else {""})
    given = prompts(spec.vocab_size, model.prompt_lengths)
    found = PackageLogits(package)(given[-1])[:, columns(spec.vocab_size)[::4]]
    with np.load(GOLDEN / f"{name}.npz") as golden:
        wanted = golden[f"prompt{len(given) - 1}"]
    # As with our operators: four bits of random weights cost most where layers are many.
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.85
