"""TOML that is read within bounds, whatever it holds."""

from __future__ import annotations

import time
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_onnx.errors import InputError
from bitnet_onnx.toml_input import load_toml, toml_string

BAD = {
    "too large": (b"#" * 2000, "2000 bytes, above the limit of 1000"),
    "a long key": (b"\n" + b".".join([b"a"] * 99) + b" = 1", "line 2 has 98 dots, above the limit of 64"),
    "not UTF-8": (b"a = '\xff'", "not TOML: 'utf-8' codec"),
    "deep": (b"a = " + b"[" * 900, "not TOML"),
    "no value": (b"a =", "not TOML: Invalid value (at end of document)"),
    "a key twice": (b"a = 1\na = 2", "not TOML: Cannot overwrite a value"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused_in_one_line(name: str, tmp_path: Path) -> None:
    content, message = BAD[name]
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    with pytest.raises(InputError) as raised:
        load_toml(path, max_bytes=1000)
    assert str(raised.value).startswith(f"{path}: {message}")
    assert "\n" not in str(raised.value)


def test_an_integer_of_many_digits(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"a = " + b"9" * 5000)
    with pytest.raises(InputError, match="not TOML: Exceeds the limit"):
        load_toml(path, max_bytes=1 << 20)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        load_toml(tmp_path / "x.toml", max_bytes=1000)
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        load_toml(tmp_path, max_bytes=1000)


def test_the_most_dots_that_fit_take_little_time(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    line = ".".join(["a"] * 64)
    path.write_text("".join(f"{line}.b{index} = 1\n" for index in range(7000)))
    begun = time.process_time()
    load_toml(path, max_bytes=1 << 20)
    assert time.process_time() - begun < 10


def test_comments_may_have_dots(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("  # " + "." * 99 + "\na = 1")
    assert load_toml(path, max_bytes=1000) == {"a": 1}


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_strings_survive(text: str) -> None:
    assert tomllib.loads(f"a = {toml_string(text)}") == {"a": text}
