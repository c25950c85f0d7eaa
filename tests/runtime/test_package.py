from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tiny_package import CHAT_TEMPLATE, TinyShape, edit_json, manifest

from bitnet_onnx.errors import PackageError
from bitnet_onnx.runtime import PackageInfo

FILES = ("model.onnx", "model.onnx.data", "tokenizer.json", "tokenizer_config.json", "config.json")


def refusal(directory: Path) -> str:
    with pytest.raises(PackageError) as caught:
        PackageInfo.open(directory)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_the_facts_of_a_good_package(package: PackageInfo, package_dir: Path) -> None:
    shape = TinyShape()
    sizes = package.architecture
    assert (sizes.num_hidden_layers, sizes.num_key_value_heads, sizes.head_dim) == (2, 2, 16)
    assert (sizes.vocab_size, sizes.context_length) == (259, shape.context_length)
    assert package.eos_token_ids == (258,)
    assert package.special_tokens == {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    assert package.chat_template == CHAT_TEMPLATE
    assert PackageInfo.open(str(package_dir)) == package


def test_a_directory_that_is_none_or_no_package(tmp_path: Path) -> None:
    assert "no such directory" in refusal(tmp_path / "absent")
    assert "not a bitnet-onnx package" in refusal(tmp_path)
    assert "bitnet-onnx convert" in refusal(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(fresh_package: Path, name: str) -> None:
    (fresh_package / name).unlink()
    assert f"{name} is missing" in refusal(fresh_package)
    (fresh_package / name).mkdir()
    assert f"{name} is missing or not a regular file" in refusal(fresh_package)


@pytest.mark.parametrize("name", ["model.onnx.data", "tokenizer.json", "bitnet_onnx.json"])
def test_a_link_out_of_the_package_is_refused(fresh_package: Path, name: str) -> None:
    outside = fresh_package.parent / "outside"
    (fresh_package / name).rename(outside)
    (fresh_package / name).symlink_to(outside)
    assert "leaves the package" in refusal(fresh_package)


def test_a_link_within_the_package_is_fine(fresh_package: Path) -> None:
    (fresh_package / "config.json").rename(fresh_package / "other.json")
    (fresh_package / "config.json").symlink_to(fresh_package / "other.json")
    PackageInfo.open(fresh_package)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_an_empty_file_is_refused(fresh_package: Path, name: str) -> None:
    (fresh_package / name).write_bytes(b"")
    assert "0 bytes" in refusal(fresh_package)


@pytest.mark.parametrize("version", [0, 1, "2", True, None, [2] * 1000])
def test_an_older_format_version_is_refused(fresh_package: Path, version: object) -> None:
    edit_json(fresh_package / "bitnet_onnx.json", format_version=version)
    text = refusal(fresh_package)
    assert "format_version is" in text
    assert "this version of bitnet-onnx reads 2; convert the checkpoint again" in text
    assert len(text) < 400


@pytest.mark.parametrize("version", [3, 10**18])
def test_a_newer_format_version_is_refused(fresh_package: Path, version: int) -> None:
    edit_json(fresh_package / "bitnet_onnx.json", format_version=version, tool_version="9.1.0")
    expected = f"format_version is {version}, written by bitnet-onnx 9.1.0, this version of bitnet-onnx reads 2"
    assert f"{expected}; update bitnet-onnx" in refusal(fresh_package)


@pytest.mark.parametrize("tool", [None, 7, "", "x" * 41, "a\nb"])
def test_a_writer_that_is_no_version_is_not_quoted(fresh_package: Path, tool: object) -> None:
    edit_json(fresh_package / "bitnet_onnx.json", format_version=3, tool_version=tool)
    assert "format_version is 3, this version" in refusal(fresh_package)


@pytest.mark.parametrize("operator", [None, {}, {"version": 0}, {"version": True}, 7])
def test_an_older_operator_version_is_refused(fresh_package: Path, operator: object) -> None:
    edit_json(fresh_package / "bitnet_onnx.json", operator=operator)
    text = refusal(fresh_package)
    assert "operator version is" in text
    assert "convert the checkpoint again" in text


def test_a_newer_operator_version_is_refused(fresh_package: Path) -> None:
    edit_json(fresh_package / "bitnet_onnx.json", operator={"version": 2}, tool_version="9.1.0")
    expected = "operator version is 2, written by bitnet-onnx 9.1.0, this version of bitnet-onnx reads 1"
    assert f"{expected}; update bitnet-onnx" in refusal(fresh_package)


@pytest.mark.parametrize("field", list(manifest(TinyShape(), 259)["architecture"]))
@pytest.mark.parametrize("value", [0, -1, 2**40, 1.5, "8", True, None])
def test_a_size_out_of_range_is_named(fresh_package: Path, field: str, value: object) -> None:
    sizes = manifest(TinyShape(), 259)["architecture"]
    edit_json(fresh_package / "bitnet_onnx.json", architecture={**sizes, field: value})
    assert f"architecture.{field} is {value!r}" in refusal(fresh_package)


def test_sizes_that_ask_for_a_monstrous_cache_are_refused(fresh_package: Path) -> None:
    sizes = manifest(TinyShape(), 259)["architecture"]
    sizes |= {"num_key_value_heads": 4096, "head_dim": 4096}
    edit_json(fresh_package / "bitnet_onnx.json", architecture=sizes)
    assert "bytes of cache a token" in refusal(fresh_package)
    edit_json(fresh_package / "bitnet_onnx.json", architecture=[1])
    assert "no object `architecture`" in refusal(fresh_package)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "not JSON"),
        (b"[]", "this is list"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 200_000, "nests deeper than 64"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": 1, "a": 2}', "appears twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "does not fit 64 bits"),
        (b" " * (16 * 2**20 + 1), "above the limit"),
    ],
)
@pytest.mark.parametrize("name", ["bitnet_onnx.json", "generation_config.json", "tokenizer_config.json"])
def test_broken_json_is_one_line(fresh_package: Path, name: str, raw: bytes, words: str) -> None:
    (fresh_package / name).write_bytes(raw)
    text = refusal(fresh_package)
    assert words in text
    assert name in text


@pytest.mark.parametrize(("value", "expected"), [(None, ()), (3, (3,)), ([3, 4], (3, 4))])
def test_end_ids_may_be_absent_one_or_many(fresh_package: Path, value: object, expected: tuple[int, ...]) -> None:
    edit_json(fresh_package / "generation_config.json", eos_token_id=value)
    assert PackageInfo.open(fresh_package).eos_token_ids == expected


@pytest.mark.parametrize("value", [-1, 259, "2", [1, None], True, [0] * 65, math.pi])
def test_wrong_end_ids_are_refused(fresh_package: Path, value: object) -> None:
    edit_json(fresh_package / "generation_config.json", eos_token_id=value)
    assert "eos_token_id" in refusal(fresh_package)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"chat_template": None}, None),
        ({"chat_template": "plain"}, "plain"),
        ({"chat_template": [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]}, "b"),
        ({"chat_template": [{"name": "tool_use", "template": "a"}, 7]}, None),
    ],
)
def test_where_a_chat_template_is_found(fresh_package: Path, changes: dict[str, Any], expected: str | None) -> None:
    edit_json(fresh_package / "tokenizer_config.json", **changes)
    assert PackageInfo.open(fresh_package).chat_template == expected
    (fresh_package / "chat_template.jinja").write_text("file", encoding="utf-8")
    assert PackageInfo.open(fresh_package).chat_template == "file"


def test_wrong_chat_templates_are_refused(fresh_package: Path) -> None:
    edit_json(fresh_package / "tokenizer_config.json", chat_template=7)
    assert "chat_template is a int" in refusal(fresh_package)
    edit_json(fresh_package / "tokenizer_config.json", chat_template="x" * (2**20 + 1))
    assert "above the limit" in refusal(fresh_package)
    jinja = fresh_package / "chat_template.jinja"
    jinja.write_text("x" * (2**20 + 1), encoding="utf-8")
    assert "above the limit" in refusal(fresh_package)
    jinja.unlink()
    outside = fresh_package.parent / "outside.jinja"
    outside.write_text("x", encoding="utf-8")
    jinja.symlink_to(outside)
    assert "leaves the package" in refusal(fresh_package)
    jinja.unlink()
    jinja.mkdir()
    assert "not a regular file" in refusal(fresh_package)


def test_special_tokens_may_be_objects(fresh_package: Path) -> None:
    edit_json(fresh_package / "tokenizer_config.json", bos_token={"content": "<s>"}, eos_token=None, add_bos_token=True)
    package = PackageInfo.open(fresh_package)
    assert package.special_tokens == {"bos_token": "<s>"}
    assert package.add_bos_token
    edit_json(fresh_package / "tokenizer_config.json", bos_token=[1])
    assert "bos_token is [1]" in refusal(fresh_package)


def test_an_unreadable_file_is_one_line(fresh_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", fail)
    assert "cannot be read: Permission denied" in refusal(fresh_package)


def test_unknown_fields_of_later_writers_are_ignored(fresh_package: Path) -> None:
    content = json.loads((fresh_package / "bitnet_onnx.json").read_text(encoding="utf-8"))
    edit_json(fresh_package / "bitnet_onnx.json", **content, novelty=1)
    PackageInfo.open(fresh_package)
