"""What goes wrong with the provider, and what is said of it."""

from __future__ import annotations

import ctypes
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from metal_provider import (
    WIDE,
    ProviderLogits,
    decoder_package,
    metal_device,
    placement,
    provider_library,
    provider_options,
)
from package_logits import PackageLogits

from bitnet_onnx.custom_ops import library_path
from bitnet_onnx.errors import BitnetOnnxError, OperatorError
from bitnet_onnx.policy import Policy, Precision, Weights
from bitnet_onnx.runtime import PackageInfo, _metal
from bitnet_onnx.runtime.session import DecoderSession

INT8 = Policy(Precision(Weights.INT8), Precision(Weights.INT8))
IDS = np.array([1, 2, 3])

pytestmark = pytest.mark.skipif(library_path() is None, reason="the operator library is not built: no C++17 compiler")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    provider_library()
    return decoder_package(tmp_path_factory.mktemp("errors"), WIDE, INT8)


def test_an_error_of_the_device_is_an_error_of_the_call(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = DecoderSession(PackageInfo.open(package), metal_device(), threads=1)
    cache = session.new_cache()
    monkeypatch.setenv("BITNET_ONNX_EMULATION_FAULT", "attention_prepare")
    with pytest.raises(BitnetOnnxError, match="kernel attention_prepare fails as asked") as caught:
        session.step([1, 2, 3], cache)
    assert "\n" not in str(caught.value)
    monkeypatch.delenv("BITNET_ONNX_EMULATION_FAULT")
    assert cache.length == 0
    expected = PackageLogits(package, library_path())(IDS)[-1]
    np.testing.assert_array_equal(session.step([1, 2, 3], cache), expected)


def test_inputs_are_checked_as_on_the_cpu(package: Path) -> None:
    session = ProviderLogits(package).session
    past = {f"past_key_values.{i}.{n}": np.zeros((1, 2, 0, 16), np.float32) for i in (0, 1) for n in ("key", "value")}
    one = np.ones((1, 1), np.int64)
    with pytest.raises(Exception, match=r"ids holds 211; it must be from 0 to 210"):
        session.run(None, {"input_ids": one * 211, "attention_mask": one, **past})
    with pytest.raises(Exception, match=r"seqlens_k\[0\] is -1; it must be from 0 to 0"):
        session.run(None, {"input_ids": one, "attention_mask": one * 0, **past})
    with pytest.raises(Exception, match=r"total_sequence_length is 9; it must be from 0 to 1"):
        session.run(None, {"input_ids": one, "attention_mask": np.ones((1, 9), np.int64), **past})
    wrong = {name: np.zeros((1, 2, 0, 12), np.float32) for name in past}
    with pytest.raises(Exception, match=r"past_key"):
        session.run(None, {"input_ids": one, "attention_mask": one, **wrong})


def test_a_later_version_of_an_operator_is_left_alone(package: Path, tmp_path: Path) -> None:
    """It runs on its function body, or is refused by an operator library that does not know it either."""
    later = shutil.copytree(package, tmp_path / "later")
    model = onnx.load(later / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "GatedActivation":
            node.attribute.append(onnx.helper.make_attribute("operator_version", 2))
    onnx.save(model, later / "model.onnx")
    claimed = sum(placement(ProviderLogits(later, operators=False).session), Counter())
    assert claimed["BitLinear"] > 0
    assert claimed["GatedActivation"] == 0
    assert sum(placement(ProviderLogits(package).session), Counter())["GatedActivation"] > 0
    with pytest.raises(Exception, match=r"GatedActivation '.*': operator_version is 2"):
        ProviderLogits(later)


def test_a_library_that_is_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "libbroken.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(_metal, "_devices", list)
    _metal.find_device.cache_clear()
    try:
        with pytest.raises(OperatorError, match="cannot load the Metal provider") as caught:
            _metal.find_device(broken)
    finally:
        _metal.find_device.cache_clear()
    assert str(broken) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_second_registration(package: Path) -> None:
    """ONNX Runtime refuses a name that it knows; what this package calls does not ask again."""
    provider_options()
    with pytest.raises(Exception, match=r"(?i)already registered"):
        ort.register_execution_provider_library(_metal.PROVIDER, str(provider_library()))
    _metal.find_device.cache_clear()
    provider_options()
    names = [device.ep_name for device in ort.get_ep_devices()]
    assert names.count("BitNetMetal") == 1


class _ApiBase(ctypes.Structure):
    """OrtApiBase."""

    GET = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
    VERSION = ctypes.CFUNCTYPE(ctypes.c_void_p)
    _fields_ = (("GetApi", GET), ("GetVersionString", VERSION))


def test_a_runtime_that_is_too_old() -> None:
    messages: list[bytes] = []

    @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
    def create_status(code: int, message: bytes) -> int:
        messages.append(message)
        return 1

    # The first entry of the oldest table.
    table = (ctypes.c_void_p * 4)(ctypes.cast(create_status, ctypes.c_void_p))
    version = ctypes.create_string_buffer(b"1.20.1")
    base = _ApiBase(
        _ApiBase.GET(lambda number: ctypes.addressof(table) if number == 1 else 0),
        _ApiBase.VERSION(lambda: ctypes.addressof(version)),
    )
    library = ctypes.CDLL(str(provider_library()))
    library.CreateEpFactories.restype = ctypes.c_void_p
    count = ctypes.c_size_t(9)
    factories = (ctypes.c_void_p * 1)()
    status = library.CreateEpFactories(
        b"BitNetMetal", ctypes.byref(base), None, factories, ctypes.c_size_t(1), ctypes.byref(count)
    )
    assert status == 1
    assert count.value == 0
    assert messages == [b"BitNetMetal needs ONNX Runtime 1.24 or later, and this is 1.20.1: upgrade onnxruntime"]


@pytest.mark.parametrize("location", ["../outside.data", "/etc/hostname"])
def test_weights_outside_of_the_package_are_not_read(package: Path, tmp_path: Path, location: str) -> None:
    import onnx

    model = onnx.load(package / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "outside.data").write_bytes((package / "model.onnx.data").read_bytes())
    onnx.save(model, inside / "model.onnx")
    with pytest.raises(Exception, match=r"(?i)external|path|directory"):
        ProviderLogits(inside)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the message is that of Linux")
def test_a_data_file_that_is_cut_off(package: Path, tmp_path: Path) -> None:
    import shutil

    cut = tmp_path / "cut"
    shutil.copytree(package, cut)
    data = cut / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:5000])
    with pytest.raises(Exception, match=r"(?i)model.onnx.data|external|out of bounds|size"):
        ProviderLogits(cut)
