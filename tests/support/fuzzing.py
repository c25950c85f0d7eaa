"""What the fuzz targets share: how one is run, what it may raise, and values that break parsers."""

from __future__ import annotations

import random
import sys
import tempfile
import types
from collections.abc import Callable, Sequence
from pathlib import Path

from bitnet_onnx.errors import BitnetOnnxError

#: Where counts, lengths and offsets go wrong.
EDGES = (0, 1, 2, 3, 7, 8, 31, 32, 33, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)


def refusal(error: BitnetOnnxError) -> None:
    """An error that was raised on purpose is one short line."""
    text = str(error)
    if not text.isprintable() or len(text) > 1000:
        raise AssertionError(f"a message that is not one short line: {text[:2000]!r}") from error


class ScratchFile:
    """One file for every input, in memory where the system has such a place."""

    def __init__(self, name: str) -> None:
        memory = Path("/dev/shm")
        self._temporary = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
        self.folder = Path(self._temporary.name)
        self.path = self.folder / name

    def __call__(self, data: bytes) -> Path:
        self.path.write_bytes(data)
        return self.path


def with_edge(data: bytes, rng: random.Random) -> bytes:
    """The data with a 32 or 64-bit number at an arbitrary place replaced by one of `EDGES`."""
    size = rng.choice((1, 4, 8))
    if len(data) < size:
        return data
    at = rng.randrange(len(data) - size + 1)
    return data[:at] + (rng.choice(EDGES) & (1 << 8 * size) - 1).to_bytes(size, "little") + data[at + size :]


def fuzz(
    target: Callable[[bytes], None], mutate: Callable[[bytes, random.Random], bytes], seeds: Sequence[bytes]
) -> None:
    """Fuzz until libFuzzer's options in `sys.argv` end it; the first corpus folder named there gets the seeds."""
    import atheris

    folders = [Path(argument) for argument in sys.argv[1:] if not argument.startswith("-")]
    for index, seed in enumerate(seeds if folders else ()):
        folders[0].mkdir(parents=True, exist_ok=True)
        (folders[0] / f"seed-{index}").write_bytes(seed)

    def mutator(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        # Half of the changes know the format.
        mutated: bytes = mutate(data, rng)[:max_size] if rng.random() < 0.5 else atheris.Mutate(data, max_size)
        return mutated

    _instrument(atheris.instrument_func)
    atheris.Setup(sys.argv, atheris.instrument_func(target), custom_mutator=mutator)
    atheris.Fuzz()


def _instrument(instrument: Callable[[types.FunctionType], object]) -> None:
    """Let every function that this package has loaded tell the fuzzer which way it went."""
    for name, module in list(sys.modules.items()):
        if not name.startswith("bitnet_onnx"):
            continue
        for holder in [module, *(item for item in vars(module).values() if isinstance(item, type))]:
            for item in list(vars(holder).values()):
                function = getattr(item, "fget", None) or getattr(item, "__func__", item)
                if isinstance(function, types.FunctionType) and function.__module__ == name:
                    instrument(function)
