"""Errors of native libraries (ONNX Runtime, tokenizers) on one line."""

from __future__ import annotations

import re

_MAX_CHARACTERS = 400
#: "[ONNXRuntimeError] : 1 : FAIL : ", and the source position that some messages carry.
_NOISE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : |\S+\.(?:cc|h):\d+ |\x1b\[[0-9;]*m")


def one_line(error: BaseException) -> str:
    """The text of an exception on one line, without status codes and source positions."""
    text = " ".join(_NOISE.sub("", str(error)).split())
    return text if len(text) <= _MAX_CHARACTERS else text[:_MAX_CHARACTERS] + "..."
