"""Checkpoints of a run: whole or not there, each verified before the run goes on from it.

`checkpoints/step-00000100/` holds `values.safetensors` (the trained tensors by role), `optimizer.safetensors` and
`state.json`. Nothing depends on the engine that computes gradients.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bitnet_onnx.converters.checkpoints._files import read_small
from bitnet_onnx.converters.onnx._directory import free_bytes
from bitnet_onnx.errors import CheckpointError, InputError, TrainingError
from bitnet_onnx.json_input import load_object
from bitnet_onnx.training._run_state import RunState, parse_state, state_fields
from bitnet_onnx.training._tensor_file import Arrays, Written, read_tensors, write_tensors
from bitnet_onnx.training.optimizers.optimizer import Optimizer
from bitnet_onnx.training.parameters import ParameterStore
from bitnet_onnx.training.records import CheckpointRecord

logger = logging.getLogger(__name__)

FOLDER: Final = "checkpoints"
VALUES: Final = "values.safetensors"
OPTIMIZER: Final = "optimizer.safetensors"
STATE: Final = "state.json"
_FORMAT: Final = "bitnet-onnx training 1"
_NAME: Final = re.compile(r"step-(\d{8,18})")
#: Settings are in it, and their lists of files.
_MAX_STATE: Final = 8_000_000


@dataclass(frozen=True, slots=True)
class _Saved:
    """What `state.json` says.

    Attributes:
        state: of the run.
        settings: that it had, by `table.field`.
        best: it was the best when it was written.
        files: the other files.
    """

    state: RunState
    settings: Mapping[str, str]
    best: bool
    files: Mapping[str, Written]


class Checkpoints:
    """The checkpoints in the directory of a run.

    Args:
        output: of the run.
        settings: every field as `table.field` with its value as text, kept for those who go on.
        keep: how many stay, the best one besides.
    """

    def __init__(self, output: Path, *, settings: Mapping[str, str], keep: int = 2) -> None:
        self.folder: Final = output / FOLDER
        self._settings = dict(settings)
        self._keep = keep

    def paths(self) -> list[Path]:
        """The directories of all checkpoints, the latest last."""
        if not self.folder.is_dir():
            return []
        return sorted((path for path in self.folder.iterdir() if _step(path) is not None), key=lambda path: path.name)

    def best(self) -> Path | None:
        """The directory of the best checkpoint, if an evaluation chose one."""
        return next((path for path in reversed(self.paths()) if self._is_best(path)), None)

    def settings(self) -> dict[str, str] | None:
        """The settings that the latest checkpoint was written with, or None where there is none that can be read."""
        for path in reversed(self.paths()):
            with suppress(InputError):
                return dict(_read_state(path).settings)
        return None

    def save(
        self, store: ParameterStore, optimizer: Optimizer, state: RunState, *, best: bool = False
    ) -> CheckpointRecord:
        """Write a checkpoint of its step, replacing one that is there, and remove those that are not kept.

        Raises:
            TrainingError: it cannot be written; those before it are as they were.
        """
        begun = time.perf_counter()
        path = self.folder / f"step-{state.step:08}"
        work = self.folder / f".{path.name}.partial"
        needed = store.values.nbytes + sum(array.nbytes for array in optimizer.state().values())
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_partial()
            work.mkdir()
            files = {
                VALUES: write_tensors(work / VALUES, _values(store)),
                OPTIMIZER: write_tensors(work / OPTIMIZER, optimizer.state()),
            }
            text = json.dumps(
                {
                    "format": _FORMAT,
                    "best": best,
                    "state": state_fields(state),
                    "files": {name: {"size": one.size, "sha256": one.sha256} for name, one in files.items()},
                    "settings": self._settings,
                }
            )
            with (work / STATE).open("wb") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            _sync(work)
            if path.exists():
                path.rename(self.folder / f".{path.name}.replaced.partial")
            work.rename(path)
            _sync(self.folder)
            self._remove_partial()
        except OSError as error:
            shutil.rmtree(work, ignore_errors=True)
            raise TrainingError(_failure(path, error, needed)) from error
        self._remove_old(state.step)
        size = sum(one.size for one in files.values()) + len(text)
        return CheckpointRecord(state.step, path, best, size, time.perf_counter() - begun)

    def restore(self, store: ParameterStore, optimizer: Optimizer) -> RunState | None:
        """Fill values and moments from the latest checkpoint that is sound.

        Returns:
            The state of the run, or None where there is no checkpoint.

        Raises:
            CheckpointError: there are checkpoints, and all of them are broken; it names the latest.
        """
        first: InputError | None = None
        for path in reversed(self.paths()):
            try:
                return self._restore(path, store, optimizer)
            except InputError as error:
                logger.warning("%s; the checkpoint before it is taken", error)
                first = first or error
        if first is not None:
            raise CheckpointError(
                f"{first}; no other checkpoint in {self.folder} can be used: remove that folder to begin again"
            )
        return None

    def _restore(self, path: Path, store: ParameterStore, optimizer: Optimizer) -> RunState:
        saved = _read_state(path)
        if saved.state.step != _step(path):
            raise CheckpointError(f"{path / STATE}: state.step is {saved.state.step}, the directory says otherwise")
        read_tensors(path / VALUES, _values(store), saved.files[VALUES])
        read_tensors(path / OPTIMIZER, optimizer.state(), saved.files[OPTIMIZER])
        optimizer.steps = saved.state.optimizer_steps
        return saved.state

    def read_values(self, path: Path, store: ParameterStore) -> RunState:
        """Fill the values alone, and return the state of the run.

        Raises:
            CheckpointError: the checkpoint is broken or of another model.
        """
        saved = _read_state(path)
        read_tensors(path / VALUES, _values(store), saved.files[VALUES])
        return saved.state

    def _is_best(self, path: Path) -> bool:
        try:
            return _read_state(path).best
        except InputError:
            return False

    def _remove_partial(self) -> None:
        """Remove what a run that was killed left."""
        for path in self.folder.glob(".step-*.partial"):
            if path.name.endswith(".replaced.partial"):
                # Killed between two renames: the one that was replaced is all there is of its step.
                whole = self.folder / path.name.removeprefix(".").removesuffix(".replaced.partial")
                if not whole.exists():
                    path.rename(whole)
                    continue
            shutil.rmtree(path)

    def _remove_old(self, step: int) -> None:
        """Remove all but the last few and the best; those after `step` are of a run that went back."""
        paths = self.paths()
        later = [path for path in paths if (_step(path) or 0) > step]
        earlier = [path for path in paths if path not in later]
        best = next((path for path in reversed(earlier) if self._is_best(path)), None)
        for path in [*later, *earlier[: -self._keep]]:
            if path != best:
                # Not worth ending a run for: the next checkpoint tries again.
                shutil.rmtree(path, ignore_errors=True)


def _values(store: ParameterStore) -> Arrays:
    return {name: store.value(name) for name in store}


def _step(path: Path) -> int | None:
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match is not None else None


def _read_state(path: Path) -> _Saved:
    where = path / STATE
    data = read_small(path, STATE, max_bytes=_MAX_STATE)
    if data is None:
        raise CheckpointError(f"{where}: no such file")
    fields = load_object(data, str(where), max_bytes=_MAX_STATE, error=CheckpointError)
    if fields.get("format") != _FORMAT:
        raise CheckpointError(f"{where}: format is {fields.get('format')!r:.60}, expected {_FORMAT!r}")
    settings, files, best = fields.get("settings"), fields.get("files"), fields.get("best")
    if not isinstance(settings, dict) or not all(isinstance(value, str) for value in settings.values()):
        raise CheckpointError(f"{where}: settings must be an object of strings")
    if not isinstance(files, dict) or files.keys() != {VALUES, OPTIMIZER}:
        raise CheckpointError(f"{where}: files must be exactly {VALUES} and {OPTIMIZER}")
    if not isinstance(best, bool):
        raise CheckpointError(f"{where}: best is {best!r:.60}: expected true or false")
    state = parse_state(fields.get("state"), str(where))
    return _Saved(state, settings, best, {name: _written(where, name, one) for name, one in files.items()})


def _written(where: Path, name: str, value: object) -> Written:
    size, digest = (value.get("size"), value.get("sha256")) if isinstance(value, dict) else (None, None)
    if not isinstance(size, int) or isinstance(size, bool) or size < 0 or not isinstance(digest, str):
        raise CheckpointError(f"{where}: files {name} must have a size and a sha256")
    return Written(size, digest)


def _sync(folder: Path) -> None:
    """Make the names in a folder last; systems that cannot open one have no need of it."""
    with suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _failure(path: Path, error: OSError, needed: int) -> str:
    text = f"{path}: the checkpoint cannot be written: {error.strerror or error}"
    if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return text
    free = ""
    with suppress(OSError):
        free = f" ({needed} bytes needed, {free_bytes(path)} free)"
    return f"{text}{free}; free some space and start the run again: it goes on from the checkpoint before"
