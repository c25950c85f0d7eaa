"""The directory of a run: what is in it, and how a run takes it."""

from __future__ import annotations

import enum
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bitnet_onnx.errors import InputError
from bitnet_onnx.training._run_lock import run_lock
from bitnet_onnx.training.checkpoints import FOLDER, Checkpoints
from bitnet_onnx.training.config_file import flat, write_config
from bitnet_onnx.training.monitoring import LOG_NAME, PAGE_NAME
from bitnet_onnx.training.resumption import check_same_run
from bitnet_onnx.training.settings import TrainingSettings

#: Beside the log, its page and the checkpoints.
CONFIG: Final = "config.toml"
MODEL: Final = "model"
TOKENS: Final = "tokens"
#: The tokenizer that a random start has trained.
TOKENIZER: Final = "trained-tokenizer.json"
TENSORBOARD: Final = "tensorboard"
#: What only the directory of a model has.
_MODEL_FILES: Final = ("config.json", "model.onnx")


class Begin(enum.StrEnum):
    """Where a run begins."""

    #: at the last checkpoint, if there is one
    AUTO = "auto"
    #: at the last checkpoint
    RESUME = "resume"
    #: at the start; what the run before left is removed
    FRESH = "fresh"


@contextmanager
def held_directory(output: Path) -> Iterator[None]:
    """Hold the directory of a run; one that is made here and refused by what follows is removed again.

    Raises:
        InputError: it cannot be made, or another process is at work there.
    """
    new = not output.exists()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(output, error) from error
    with run_lock(output):
        try:
            yield
        except InputError:
            if new and not (output / FOLDER).exists():
                shutil.rmtree(output, ignore_errors=True)
            raise


def check_directory(settings: TrainingSettings, checkpoints: Checkpoints, begin: Begin) -> None:
    """Refuse a directory that is not one of this run; nothing is written.

    Raises:
        InputError: a model or another run is there, or nothing to go on from.
    """
    output = settings.output
    if output.is_file():
        raise InputError(f"output is {output}: a file is there; choose another")
    for name in _MODEL_FILES:
        if (output / name).exists():
            raise InputError(f"output is {output}: a model is there, with {name}; choose another")
    if begin is Begin.FRESH:
        return
    saved = checkpoints.settings()
    if saved is not None:
        check_same_run(saved, flat(settings), str(output))
    elif begin is Begin.RESUME:
        raise InputError(f"{output}: no checkpoint to go on from; leave --resume out to begin")


def enter_directory(settings: TrainingSettings, begin: Begin) -> None:
    """Remove what a fresh run replaces, and write the settings.

    Raises:
        InputError: the directory cannot be written to.
    """
    output = settings.output
    try:
        if begin is Begin.FRESH:
            _remove_run(output)
        (output / CONFIG).write_text(write_config(settings), encoding="utf-8")
    except OSError as error:
        raise _unwritable(output, error) from error


def _unwritable(output: Path, error: OSError) -> InputError:
    return InputError(f"output is {output}: it cannot be written: {error.strerror or error}; choose another")


def _remove_run(output: Path) -> None:
    """Remove what a run before wrote, but for its model, which the next one replaces, and what texts gave."""
    for name in (FOLDER, TENSORBOARD):
        if (output / name).exists():
            shutil.rmtree(output / name)
    for name in (LOG_NAME, PAGE_NAME):
        (output / name).unlink(missing_ok=True)
