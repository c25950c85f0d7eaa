"""Statistics of every linear layer's input, in one pass of the float graph over text."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

import numpy as np

from bitnet_onnx.calibration._accumulator import Accumulator
from bitnet_onnx.calibration._taps import Tap, find_taps
from bitnet_onnx.calibration.statistics_file import ModelStatistics
from bitnet_onnx.calibration.windows import Sampling, read_windows, text_size
from bitnet_onnx.converters import convert
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.errors import InputError
from bitnet_onnx.evaluation._session import PackageSession, load_graph
from bitnet_onnx.package_format import MANIFEST
from bitnet_onnx.policy import Policy, Precision, Weights
from bitnet_onnx.quantized import FloatArray
from bitnet_onnx.runtime import Device, PackageInfo, auto_select_device
from bitnet_onnx.runtime.tokenizer import TextTokenizer

logger = logging.getLogger(__name__)

#: Called after each window: how many are done, and how many there are.
Progress = Callable[[int, int], None]

#: Bytes of all second moments for which the blocks are chosen.
_MOMENT_BYTES: Final = 1 << 30
_BLOCKS: Final = (1 << 14, 4096, 2048, 1024, 512, 256, 128)
_SAVE_EVERY_S: Final = 60.0
_WINDOWS: Final = "windows_done"
_DIGEST: Final = "digest"
_FLOATS: Final = Precision(Weights.FLOAT32)


@dataclass(frozen=True, slots=True)
class CollectOptions:
    """What is read.

    Attributes:
        tokens: in all.
        window: tokens of one window, which is read as a text of its own.
        sampling: where windows begin.
        seed: of the places.
        sample: tokens whose inputs are kept as they are.
        block: features of one block of a second moment at most; None: as large as fits 1 GiB.

    Raises:
        InputError: a value is out of range.
    """

    tokens: int = 32768
    window: int = 256
    sampling: Sampling = Sampling.STRATIFIED
    seed: int = 0
    sample: int = 256
    block: int | None = None

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("tokens", self.tokens, 1, 1 << 30),
            ("window", self.window, 2, 1 << 20),
            ("sample", self.sample, 0, 1 << 16),
            ("block", self.block or 1, 1, 1 << 20),
            ("seed", self.seed, 0, (1 << 63) - 1),
        ):
            if not least <= value <= most:
                raise InputError(f"{name} is {value}, expected {least} to {most}")


def collect(
    source: Path,
    texts: Sequence[Path],
    options: CollectOptions | None = None,
    *,
    state: Path | None = None,
    device: Device | None = None,
    progress: Progress | None = None,
) -> ModelStatistics:
    """Read texts with the float model, and keep what its linear layers saw.

    Args:
        source: a checkpoint or a package; its weights are taken as floats.
        texts: UTF-8 files.
        options: what is read.
        state: a file that is written from time to time; where it is there and of the same task, it is gone on from.
        device: where the model runs.
        progress: called after each window.

    Raises:
        InputError: a text is not usable, or the model is not.
    """
    options = options or CollectOptions()
    if not texts:
        raise InputError("no text to read: name at least one file")
    sizes = [text_size(path) for path in texts]
    if not any(sizes):
        raise InputError(f"{texts[0]}: the text is empty")
    with float_package(source) as (package, spec):
        graph = load_graph(package.model_path).graph
        taps = find_taps(graph, spec)
        block = options.block or _block([tap.features for tap in taps])
        length = min(options.window, spec.context_length)
        count = -(-options.tokens // length)
        session = PackageSession(package, device or auto_select_device(), [tap.value for tap in taps], head=False)
        about = _about(package, source.name, texts, options, block)
        task = _Task(taps, block, about, -(-options.sample // count))
        done = task.resume(state)
        windows = read_windows(
            texts,
            TextTokenizer(package),
            count=count,
            length=length,
            sampling=options.sampling,
            seed=options.seed,
        )
        saved = time.monotonic()
        for index, ids in enumerate(windows):
            if index >= done:
                task.add(*session.trace(ids))
            if state is not None and time.monotonic() - saved > _SAVE_EVERY_S:
                task.statistics(index + 1).save(state)
                saved = time.monotonic()
            if progress is not None:
                progress(index + 1, count)
    return task.statistics(None)


@contextmanager
def float_package(source: Path, *, context_length: int | None = None) -> Iterator[tuple[PackageInfo, DecoderSpec]]:
    """A temporary package with all weights of a model as floats, perhaps with room for other positions."""
    with tempfile.TemporaryDirectory(prefix="bitnet-onnx-") as folder:
        conversion = convert(
            source, Path(folder, "floats"), policy=Policy(_FLOATS, _FLOATS), context_length=context_length
        )
        yield PackageInfo.open(conversion.path), conversion.spec


class _Task:
    """The sums over all layers."""

    def __init__(self, taps: Sequence[Tap], block: int, about: dict[str, str], kept: int) -> None:
        self._taps = taps
        self._block = block
        self._about = about
        self._kept = kept
        self._sums = [Accumulator(tap.features, block) for tap in taps]
        self._peaks: list[FloatArray] = []

    def add(self, inputs: Sequence[FloatArray], caches: Sequence[FloatArray]) -> None:
        """What one window gave."""
        for total, x in zip(self._sums, inputs, strict=True):
            total.add(x, min(self._kept, len(x)))
        peaks = [np.abs(cache).max(axis=1) for cache in caches]
        self._peaks = [np.maximum(*pair) for pair in zip(self._peaks, peaks, strict=True)] if self._peaks else peaks

    def statistics(self, windows_done: int | None) -> ModelStatistics:
        """All sums so far; with the number of windows, to go on from."""
        about = self._about if windows_done is None else {**self._about, _WINDOWS: str(windows_done)}
        if not self._peaks:
            raise InputError("nothing was read")
        return ModelStatistics(
            {tap.roles[0]: total.statistics() for tap, total in zip(self._taps, self._sums, strict=True)},
            {role: tap.roles[0] for tap in self._taps for role in tap.roles},
            np.stack(self._peaks[0::2]),
            np.stack(self._peaks[1::2]),
            about,
        )

    def resume(self, state: Path | None) -> int:
        """Windows that are in the sums already."""
        if state is None or not state.exists():
            return 0
        try:
            seen = ModelStatistics.open(state)
        except InputError:  # what cannot be gone on from is begun anew
            return 0
        done = seen.about.get(_WINDOWS, "")
        if seen.about.get(_DIGEST) != self._about[_DIGEST] or not done.isdecimal():
            return 0
        for index, tap in enumerate(self._taps):
            self._sums[index] = Accumulator.resumed(seen.inputs[tap.roles[0]], self._block)
        self._peaks = [peak for pair in zip(seen.key_peak, seen.value_peak, strict=True) for peak in pair]
        logger.info("going on after %s windows", done)
        return int(done)


def _block(widths: Sequence[int]) -> int:
    """The largest blocks with which all second moments fit."""
    for block in _BLOCKS:
        counts = [(width, -(-width // block)) for width in widths]
        if sum(4 * width * -(-width // count) for width, count in counts) <= _MOMENT_BYTES:
            return block
    return _BLOCKS[-1]


def _about(
    package: PackageInfo, model: str, texts: Sequence[Path], options: CollectOptions, block: int
) -> dict[str, str]:
    about = {name: str(value) for name, value in dataclasses.asdict(options).items()}
    about |= {
        "block": str(block),
        "texts": "; ".join(path.name for path in texts),
        "model": model,
    }
    digest = sha256((package.directory / MANIFEST).read_bytes())
    for path in texts:
        digest.update(f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}".encode())
    digest.update(repr(sorted(about.items())).encode())
    return about | {_DIGEST: digest.hexdigest()}
