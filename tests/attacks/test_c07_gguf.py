"""Class 7: GGUF headers that lie."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from bounded_command import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_checkpoints import (
    bpe_metadata,
    description,
    gguf_bytes,
    llama_metadata,
    llama_tensors,
    pair,
    sentencepiece_metadata,
    text,
    write_gguf,
)
from tiny_gguf import SHAPES, write_tiny

from bitnet_onnx.converters.checkpoints import open_checkpoint
from bitnet_onnx.converters.checkpoints._gguf_reader import MAX_ELEMENTS
from bitnet_onnx.converters.model import open_model
from bitnet_onnx.errors import CheckpointError, UnsupportedError

ALIGNMENT = "general.alignment"


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def array(kind: int, count: int, elements: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + elements


DATA = bytes(256)

CASES = {
    "magic": (gguf_bytes(magic=b"FUGG"), CheckpointError, "does not start with GGUF"),
    "old format": (b"lmgg" + bytes(100), CheckpointError, "does not start with GGUF"),
    "empty": (b"", CheckpointError, "magic"),
    "version 1": (gguf_bytes(version=1), UnsupportedError, "version 1"),
    "version 4": (gguf_bytes(version=4), UnsupportedError, "version 4"),
    "version 0": (gguf_bytes(version=0), UnsupportedError, "version 0"),
    "big endian": (gguf_bytes(version=0x03000000), UnsupportedError, "big-endian"),
    "tensor count": (gguf_bytes(tensors=2**64 - 1), CheckpointError, "tensor count is 18446744073709551615"),
    "tensor count, small": (gguf_bytes(tensors=50), CheckpointError, "tensor count is 50, too many"),
    "key count": (gguf_bytes(keys=2**63), CheckpointError, "key count is"),
    "key count, small": (gguf_bytes(keys=500), CheckpointError, "key count is 500, too many"),
    "missing keys": (gguf_bytes([pair("a", 4, u32(1))], keys=2, data=DATA), CheckpointError, "no general.architecture"),
    "key length": (gguf_bytes([u64(2**63) + bytes(20)]), CheckpointError, "key of 9223372036854775808 bytes exceeds"),
    "key beyond the file": (gguf_bytes([u64(60_000) + bytes(20)]), CheckpointError, "key takes 60000 bytes"),
    "key not UTF-8": (gguf_bytes([pair(b"\xff\xfe", 4, u32(1))]), CheckpointError, "key is not UTF-8"),
    "key twice": (gguf_bytes([pair("a", 4, u32(1))] * 2), CheckpointError, "key 'a' appears twice"),
    "value type": (gguf_bytes([pair("a", 13, bytes(8))]), CheckpointError, "'a' has unknown value type 13"),
    "boolean": (gguf_bytes([pair("a", 7, b"\2")]), CheckpointError, "'a' holds 2 as a boolean"),
    "string": (gguf_bytes([pair("a", 8, u64(2**40))]), CheckpointError, "value of 'a' of 1099511627776 bytes exceeds"),
    "string beyond": (gguf_bytes([pair("a", 8, u64(10_000))]), CheckpointError, "value of 'a' takes 10000 bytes"),
    "string not UTF-8": (gguf_bytes([pair("a", 8, text(b"\xc3"))]), CheckpointError, "value of 'a' is not UTF-8"),
    "nested": (gguf_bytes([pair("a", 9, array(9, 1, array(4, 0)))]), UnsupportedError, "array of arrays"),
    "element type": (gguf_bytes([pair("a", 9, array(99, 1))]), CheckpointError, "unknown element type 99"),
    "array length": (
        gguf_bytes([pair("a", 9, array(4, 2**62))]),
        CheckpointError,
        "length of 'a' is 4611686018427387904",
    ),
    "array beyond": (gguf_bytes([pair("a", 9, array(4, 1000))]), CheckpointError, "length of 'a' is 1000, too many"),
    "strings beyond": (gguf_bytes([pair("a", 9, array(8, 1000))]), CheckpointError, "length of 'a' is 1000, too many"),
    "booleans": (gguf_bytes([pair("a", 9, array(7, 2, b"\1\3"))]), CheckpointError, "'a' holds 3 as a boolean"),
    "alignment 0": (gguf_bytes([pair(ALIGNMENT, 4, u32(0))]), CheckpointError, "alignment is 0, not a power of two"),
    "alignment 3": (gguf_bytes([pair(ALIGNMENT, 4, u32(3))]), CheckpointError, "alignment is 3"),
    "alignment 2^31": (gguf_bytes([pair(ALIGNMENT, 4, u32(2**31))]), CheckpointError, "alignment is '2147483648'"),
    "alignment u64": (gguf_bytes([pair(ALIGNMENT, 10, u64(32))]), CheckpointError, "alignment has type 10, not uint32"),
    "alignment text": (gguf_bytes([pair(ALIGNMENT, 8, text("32"))]), CheckpointError, "alignment has type 8"),
    "no dimensions": (gguf_bytes([], [description("a", ())], data=DATA), CheckpointError, "0 dimensions"),
    "5 dimensions": (gguf_bytes([], [description("a", (1,) * 5)], data=DATA), CheckpointError, "5 dimensions"),
    "2^32 - 1 dimensions": (
        gguf_bytes([], [description("a", (1,), dimensions=2**32 - 1)], data=DATA),
        CheckpointError,
        "4294967295 dimensions",
    ),
    "empty dimension": (gguf_bytes([], [description("a", (0, 4))], data=DATA), CheckpointError, "empty dimension"),
    "overflow": (
        gguf_bytes([], [description("a", (2**32, 2**32, 2))], data=DATA),
        CheckpointError,
        r"F32 \[2, 4294967296, 4294967296\] takes \d+ bytes",
    ),
    "partial block": (gguf_bytes([], [description("a", (48, 2), 2)], data=DATA), CheckpointError, "whole blocks of 32"),
    "type 77": (gguf_bytes([], [description("a", (32,), 77)], data=DATA), UnsupportedError, "type id 77 is not known"),
    "removed type": (gguf_bytes([], [description("a", (32,), 4)], data=DATA), UnsupportedError, "type id 4"),
    "I2_S": (gguf_bytes([], [description("a", (128,), 36)], data=DATA), UnsupportedError, "--i2s-layout x86"),
    "TL1": (gguf_bytes([], [description("a", (32,), 38)], data=DATA), UnsupportedError, "TL1"),
    "TL2 or MXFP4": (gguf_bytes([], [description("a", (32,), 39)], data=DATA), UnsupportedError, "MXFP4 and TL2"),
    "name length": (gguf_bytes([], [description("a" * 200)], data=DATA), CheckpointError, "tensor name of 200 bytes"),
    "name twice": (
        gguf_bytes([], [description("a"), description("a", offset=128)], data=DATA),
        CheckpointError,
        "'a': appears twice",
    ),
    "offset not aligned": (gguf_bytes([], [description("a", offset=4)], data=DATA), CheckpointError, "offset 4 is not"),
    "offset beyond": (gguf_bytes([], [description("a", offset=256)], data=DATA), CheckpointError, "ends at byte"),
    "offset 2^64 - 32": (
        gguf_bytes([], [description("a", offset=2**64 - 32)], data=DATA),
        CheckpointError,
        "ends at byte 18446744073709551",
    ),
    "overlap": (
        gguf_bytes([], [description("a", (64,)), description("b", offset=128)], data=DATA),
        CheckpointError,
        "'b': starts at byte .* inside the one before",
    ),
}


@pytest.mark.parametrize(("data", "error", "message"), CASES.values(), ids=CASES)
def test_broken_header(tmp_path: Path, data: bytes, error: type[Exception], message: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    with pytest.raises(error, match=message) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_elements_of_all_arrays_together_are_bounded(tmp_path: Path) -> None:
    half = array(0, MAX_ELEMENTS // 2 + 1, bytes(MAX_ELEMENTS // 2 + 1))
    (tmp_path / "x.gguf").write_bytes(gguf_bytes([pair("a", 9, half), pair("b", 9, half)]))
    with pytest.raises(CheckpointError, match=f"length of 'b' is {MAX_ELEMENTS // 2 + 1}, the limit"):
        open_checkpoint(tmp_path / "x.gguf")


def test_a_sparse_terabyte_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_bytes([pair("a", 8, u64(2**39))]))
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="exceeds the limit"):
        open_checkpoint(path)
    path.write_bytes(gguf_bytes([pair("a", 8, u64(63_999_999))]))
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="the header ends at 64000000"):
        open_checkpoint(path)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_after_a_sound_start(tmp_path_factory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + data)
    with pytest.raises((CheckpointError, UnsupportedError)):
        open_checkpoint(path)


_SOUND: dict[str, bytes] = {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    for architecture in SHAPES:
        write_tiny(folder / "x.gguf", architecture)
        _SOUND[architecture] = (folder / "x.gguf").read_bytes()
    return folder


@given(
    st.sampled_from(sorted(SHAPES)),
    st.lists(st.tuples(st.integers(0, 4000), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4),
)
@settings(max_examples=200)
def test_sound_files_with_some_bytes_changed(folder: Path, architecture: str, changes: list[tuple[int, bytes]]) -> None:
    data = bytearray(_SOUND[architecture])
    for at, new in changes:
        data[at : at + len(new)] = new
    (folder / "x.gguf").write_bytes(data)
    with suppress(CheckpointError, UnsupportedError), open_checkpoint(folder / "x.gguf") as checkpoint:
        for name in checkpoint.tensors:
            assert np.isfinite(checkpoint.read(name)).all()
            checkpoint.read_quantized(name)


@pytest.mark.parametrize("tokens", [bpe_metadata(), sentencepiece_metadata()], ids=["gpt2", "llama"])
def test_tokenizer_and_embedding_disagree(tmp_path: Path, tokens: dict[str, object]) -> None:
    path = write_gguf(tmp_path / "x.gguf", llama_metadata() | tokens, llama_tensors(50))
    with pytest.raises(CheckpointError, match=r"tokens says \d+ tokens, token_embd.weight has 50 rows"):
        open_checkpoint(path)


def test_special_token_beyond_the_vocabulary(tmp_path: Path) -> None:
    tokens = bpe_metadata() | {"tokenizer.ggml.eot_token_id": 4000}
    tensors = llama_tensors(len(tokens["tokenizer.ggml.tokens"]))
    path = write_gguf(tmp_path / "x.gguf", llama_metadata() | tokens, tensors)
    with pytest.raises(CheckpointError, match="eot_token_id is 4000, but there are"):
        open_checkpoint(path)


def test_pieces_whose_merges_explode(tmp_path: Path) -> None:
    tokens = sentencepiece_metadata()
    words = [letter * count for letter in "abcdefgh" for count in range(1, 257)]
    tokens["tokenizer.ggml.tokens"] = ["<unk>", "<s>", "</s>", *words]
    tokens["tokenizer.ggml.token_type"] = [2, 3, 3] + [1] * len(words)
    tokens["tokenizer.ggml.scores"] = [0.0] * (len(words) + 3)
    path = write_gguf(tmp_path / "x.gguf", llama_metadata() | tokens, llama_tensors(len(words) + 3))
    with open_checkpoint(path) as checkpoint, pytest.raises(CheckpointError, match="imply merges of more than"):
        checkpoint.tokenizer()


def test_block_scales_that_are_not_finite(tmp_path: Path) -> None:
    blocks = np.zeros((40, 2 * 34), np.uint8)
    blocks[7, 34:36] = (0x00, 0x7C)  # the second block's scale: infinity
    blocks[7, 36] = 1
    name = "token_embd.weight"
    keys = [pair("general.architecture", 8, text("llama"))]
    for key, value in llama_metadata(general__name=None).items():
        keys.append(pair(key, 6, struct.pack("<f", value)) if isinstance(value, float) else pair(key, 4, u32(value)))
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_bytes(keys, [description(name, (64, 40), 8)], data=blocks.tobytes()))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.read_rows("model.embed_tokens.weight", 0, 7).shape == (7, 64)
        with pytest.raises(CheckpointError, match=r"model\.embed_tokens\.weight' holds (inf|nan) at element 480"):
            checkpoint.read_rows("model.embed_tokens.weight", 7, 8)


@pytest.mark.parametrize(
    "data",
    [
        gguf_bytes(magic=b"GGUX"),
        gguf_bytes(version=99),
        gguf_bytes([pair(ALIGNMENT, 4, u32(3))]),
        gguf_bytes([pair("general.architecture", 9, u32(9) + u64(1))]),
        gguf_bytes(keys=1 << 60),
    ],
    ids=["magic", "version", "alignment", "nested array", "keys"],
)
def test_the_command_line(tmp_path: Path, data: bytes) -> None:
    source = tmp_path / "source.gguf"
    source.write_bytes(data)
    assert "source.gguf" in refused(source, tmp_path / "out")


def test_no_word_rule_and_a_broken_weight_are_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokens = bpe_metadata(None)
    tensors = llama_tensors(len(tokens["tokenizer.ggml.tokens"]))
    path = write_gguf(tmp_path / "sound.gguf", llama_metadata() | tokens, tensors)
    with open_model(path):
        assert not caplog.records
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: tokenizer.ggml.pre is missing; words are cut as in GPT-2"
    ]
    tensors["blk.0.attn_norm.weight"][3] = np.nan
    broken = write_gguf(tmp_path / "broken.gguf", llama_metadata() | tokens, tensors)
    assert "nan at element 3" in refused(broken, tmp_path / "out")
