"""The directory of a run: what is in it, and how a run takes it."""

from __future__ import annotations

import enum
import shutil
from pathlib import Path
from typing import Final

from bitnet_onnx.errors import InputError
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


class Begin(enum.StrEnum):
    """Where a run begins."""

    #: at the last checkpoint, if there is one
    AUTO = "auto"
    #: at the last checkpoint
    RESUME = "resume"
    #: at the start; what the run before left is removed
    FRESH = "fresh"


def enter_directory(settings: TrainingSettings, checkpoints: Checkpoints, begin: Begin) -> None:
    """Refuse or remove what is in the directory of a run, which this process holds, and write the settings.

    Raises:
        InputError: checkpoints of another run are there, or none where there should be one.
    """
    output = settings.output
    if begin is Begin.FRESH:
        _remove_run(output)
    saved = checkpoints.settings()
    if saved is not None:
        check_same_run(saved, dict(flat(settings)), str(output))
    elif begin is Begin.RESUME:
        raise InputError(f"{output}: no checkpoint to go on from; leave --resume out to begin")
    (output / CONFIG).write_text(write_config(settings), encoding="utf-8")


def _remove_run(output: Path) -> None:
    """Remove what a run before wrote, but for its model, which the next one replaces, and what texts gave."""
    for name in (FOLDER, TENSORBOARD):
        if (output / name).exists():
            shutil.rmtree(output / name)
    for name in (LOG_NAME, PAGE_NAME):
        (output / name).unlink(missing_ok=True)
