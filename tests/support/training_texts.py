"""Tokenizers and files for tests of training data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tiny_package import byte_tokenizer
from tokenizers import Tokenizer

from bitnet_onnx.training.data import DataTokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@cache
def data_tokenizer(
    template: str | None = CHATML, *, inner: Tokenizer | None = None, vocab_size: int = 512, **config: object
) -> DataTokenizer:
    """Bytes with the control tokens of ChatML, or another tokenizer; made once, with the process of its template."""
    inner = byte_tokenizer() if inner is None else inner
    fields: dict[str, object] = {"eos_token": "<|endoftext|>", "chat_template": template, **config}
    files = {"tokenizer.json": inner.to_str().encode(), "tokenizer_config.json": json.dumps(fields).encode()}
    return DataTokenizer.from_files(files, vocab_size=vocab_size, source=Path("model"))


def write_lines(path: Path, lines: Sequence[object]) -> Path:
    """A JSONL file."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


def chat(*contents: str) -> dict[str, object]:
    """A line with messages of user and assistant in turn."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[index % 2], "content": text} for index, text in enumerate(contents)]}
