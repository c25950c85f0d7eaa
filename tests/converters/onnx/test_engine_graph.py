"""The runtime's own graph: the same logits as `model.onnx`, from the position that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from tiny_models import TINY, prompts

from bitnet_onnx.api import make_policy
from bitnet_onnx.converters import convert
from bitnet_onnx.errors import PackageError
from bitnet_onnx.package_format import ENGINE, LOGITS_START, MODEL
from bitnet_onnx.runtime import Device, PackageInfo
from bitnet_onnx.runtime.session import DecoderSession


def logits(graph: Path, ids: np.ndarray, start: int | None) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    feeds = {
        value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
        for value in session.get_inputs()
        if value.name.startswith("past_key_values")
    }
    feeds |= {"input_ids": ids[None], "attention_mask": np.ones((1, len(ids)), np.int64)}
    if start is not None:
        feeds[LOGITS_START] = np.array([start], np.int64)
    return session.run(["logits"], feeds)[0][0]


@pytest.mark.parametrize("head", ["int8", "float32"])
@pytest.mark.parametrize("name", TINY)
def test_logits_from_a_position_on(
    name: str, head: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    package = tmp_path / "package"
    convert(tiny_checkpoint(name), package, policy=make_policy("int4", head))
    onnx.checker.check_model(package / ENGINE, full_check=True)
    ids = prompts(515)[1]
    whole = logits(package / MODEL, ids, None)
    for start in (0, 3, len(ids) - 1):
        np.testing.assert_allclose(logits(package / ENGINE, ids, start), whole[start:], atol=1e-5)

    session = DecoderSession(PackageInfo.open(package), Device(), threads=1, prefill_chunk=3)
    np.testing.assert_allclose(session.forward(ids.tolist(), session.new_cache()), whole, atol=1e-4)
    np.testing.assert_allclose(session.step(ids.tolist(), session.new_cache()), whole[-1], atol=1e-4)


def test_the_two_graphs_share_the_data_file(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    package = tmp_path / "package"
    convert(tiny_checkpoint("untied_gqa"), package)
    places = []
    for name in (MODEL, ENGINE):
        graph = onnx.load(package / name, load_external_data=False).graph
        places.append({t.name: [(e.key, e.value) for e in t.external_data] for t in graph.initializer})
    assert places[0] == places[1]
    assert any(places[0].values())


def test_an_engine_graph_that_links_out_of_the_package_is_refused(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    package = tmp_path / "package"
    convert(tiny_checkpoint("untied_gqa"), package)
    (package / ENGINE).rename(tmp_path / "outside.onnx")
    (package / ENGINE).symlink_to(tmp_path / "outside.onnx")
    with pytest.raises(PackageError, match=r"engine\.onnx: a link that leaves the package"):
        PackageInfo.open(package)


def test_a_package_without_an_engine_graph_still_runs(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    package = tmp_path / "package"
    convert(tiny_checkpoint("tied_mha"), package)
    ids = prompts(515)[1].tolist()
    with_engine = DecoderSession(PackageInfo.open(package), Device(), threads=1)
    expected = with_engine.step(ids, with_engine.new_cache())
    (package / ENGINE).unlink()
    without = DecoderSession(PackageInfo.open(package), Device(), threads=1)
    np.testing.assert_allclose(without.step(ids, without.new_cache()), expected, atol=1e-5)
