from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bitnet_onnx.training.parameters import ParameterStore

_SHAPES = {"norm": (5,), "weight": (4, 8), "scale": (), "head": (3, 7)}
_DECAYED = frozenset({"weight", "head"})


def test_matrices_with_decay_come_first() -> None:
    store = ParameterStore(_SHAPES, decayed=_DECAYED)
    assert list(store) == list(_SHAPES)
    places = sorted(_SHAPES, key=lambda name: store.place(name).start)
    assert places == ["weight", "head", "norm", "scale"]
    assert store.decayed_size == store.place("norm").start
    assert all(store.place(name).stop <= store.decayed_size for name in _DECAYED)


def test_tensors_do_not_overlap_and_begin_at_cache_lines() -> None:
    store = ParameterStore(_SHAPES, decayed=_DECAYED)
    taken = np.zeros(store.size, int)
    for name, shape in _SHAPES.items():
        place = store.place(name)
        assert place.start % 16 == 0
        assert place.stop - place.start == np.prod(shape, dtype=int)
        taken[place] += 1
    assert taken.max() == 1
    assert store.size % 16 == 0


def test_values_and_gradients_are_views_of_two_blocks() -> None:
    store = ParameterStore(_SHAPES)
    for index, name in enumerate(store, 1):
        store.value(name)[...] = index
        store.gradient(name)[...] = -index
        assert store.value(name).shape == store.gradient(name).shape == _SHAPES[name]
    for index, name in enumerate(store, 1):
        assert set(store.values[store.place(name)]) == {index}
        assert set(store.gradients[store.place(name)]) == {-index}
    between = np.ones(store.size, bool)
    for name in store:
        between[store.place(name)] = False
    assert between.any()
    assert not store.values[between].any()
    assert store.values.dtype == store.gradients.dtype == np.float32


def test_a_place_for_a_name_that_is_not_there_is_an_error() -> None:
    with pytest.raises(KeyError, match="absent"):
        ParameterStore(_SHAPES).value("absent")


def test_another_process_sees_a_file_and_writes_to_it(tmp_path: Path) -> None:
    path = tmp_path / "parameters"
    store = ParameterStore(_SHAPES, decayed=_DECAYED, path=path)
    store.value("weight")[...] = np.arange(32.0).reshape(4, 8)
    code = (
        "import sys, pathlib\n"
        "from bitnet_onnx.training.parameters import ParameterStore\n"
        f"store = ParameterStore({_SHAPES!r}, decayed={_DECAYED!r}, path=pathlib.Path(sys.argv[1]))\n"
        "store.gradient('weight')[...] += 2 * store.value('weight')\n"
    )
    for _ in range(2):
        subprocess.run([sys.executable, "-P", "-c", code, path], check=True)
    np.testing.assert_array_equal(store.gradient("weight"), 4 * store.value("weight"))
    assert store.path == path


def test_a_file_is_opened_again_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "parameters"
    ParameterStore(_SHAPES, path=path).value("head")[...] = 3
    assert ParameterStore(_SHAPES, path=path).value("head").min() == 3
