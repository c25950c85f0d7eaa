from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bitnet_onnx.converters.checkpoints import Checkpoint, open_checkpoint


@pytest.fixture
def opened() -> Iterator[Callable[[Path], Checkpoint]]:
    """`open_checkpoint`, with the checkpoint closed at the end of the test."""
    with ExitStack() as stack:
        yield lambda path: stack.enter_context(open_checkpoint(path))
