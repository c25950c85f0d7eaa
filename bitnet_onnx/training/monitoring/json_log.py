"""A run as lines of JSON, for programs and for its page."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Final

from bitnet_onnx.errors import InputError
from bitnet_onnx.json_input import load_object
from bitnet_onnx.training.monitoring.quantization import QuantizationRecord
from bitnet_onnx.training.records import CheckpointRecord, EvaluationRecord, RollbackRecord, StepRecord

#: Of a line: a measurement of 8,192 layers with seven matrices each takes half as much.
_MAX_LINE: Final = 1 << 24
_MAX_LINES: Final = 5_000_000


class JsonLog:
    """Writes a JSON object a record: `kind`, and the record's fields; numbers that are not finite are null.

    The first line, `kind` "run", holds the settings. Every line is written at once. Lines of steps that no longer hold,
    because the run broke off behind its last checkpoint or went back, are cut off, but for the line about that.

    Args:
        path: the file.
        settings: of the run, fit for JSON.
        every: steps between two records of steps.
    """

    def __init__(self, path: Path, settings: Mapping[str, object], *, every: int = 1) -> None:
        self._path = path
        self._settings = settings
        self._every = every
        self._file: IO[bytes] | None = None

    def begin(self, step: int) -> None:
        """Open the file; one of a run from the start is written anew."""
        if step > 0 and self._path.exists():
            cut(self._path, step)
            self._file = self._path.open("ab")
        else:
            self._file = self._path.open("wb")
        if self._file.tell() == 0:
            self._write("run", {"settings": self._settings})

    def step(self, record: StepRecord) -> None:
        """One line every so many steps."""
        if record.step % self._every == 0:
            self._write("step", asdict(record))

    def evaluation(self, record: EvaluationRecord) -> None:
        """One line."""
        self._write("evaluation", asdict(record))

    def checkpoint(self, record: CheckpointRecord) -> None:
        """One line, with the name of the directory alone: a run may be moved."""
        self._write("checkpoint", {**asdict(record), "path": record.path.name})

    def rollback(self, record: RollbackRecord) -> None:
        """One line, in the place of those that no longer hold."""
        if self._file is not None:
            self._file.close()
            cut(self._path, record.to)
            self._file = self._path.open("ab")
        self._write("rollback", asdict(record))

    def quantization(self, record: QuantizationRecord) -> None:
        """One line."""
        self._write("quantization", asdict(record))

    def result(self, figures: Mapping[str, object]) -> None:
        """One line, the last: what came out. The file may be closed already."""
        with self._path.open("ab") as file:
            file.write(_line("result", figures))

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, kind: str, fields: Mapping[str, object]) -> None:
        if self._file is not None:
            self._file.write(_line(kind, fields))
            self._file.flush()


def cut(path: Path, step: int) -> None:
    """Cut off what a log says of steps after `step`, its result, and a line that was not written to its end."""
    end = 0
    with path.open("rb") as file:
        for line in iter(lambda: file.readline(_MAX_LINE + 1), b""):
            if not line.endswith(b"\n") or _place(line) > step:
                break
            end += len(line)
    with path.open("r+b") as file:
        file.truncate(end)


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a log one by one; a last one that was not written to its end is left out.

    Raises:
        InputError: a line is not a JSON object or too long, or there are too many.
    """
    with path.open("rb") as file:
        for number in range(1, _MAX_LINES + 2):
            line = file.readline(_MAX_LINE + 1)
            if not line.endswith(b"\n") and len(line) <= _MAX_LINE:
                return
            if number > _MAX_LINES:
                raise InputError(f"{path}: more than {_MAX_LINES} lines: not the log of a run")
            yield load_object(line, f"{path} line {number}", max_bytes=_MAX_LINE)


def _line(kind: str, fields: Mapping[str, object]) -> bytes:
    return json.dumps(_finite({"kind": kind, **fields}), allow_nan=False).encode() + b"\n"


def _place(line: bytes) -> float:
    """The last step that must hold for a line to hold."""
    try:
        fields = json.loads(line)
        if fields["kind"] == "run":
            return 0
        return float(fields["to"] if fields["kind"] == "rollback" else fields["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf


def _finite(value: object) -> object:
    """The same with null in the place of what JSON has no number for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value if isinstance(value, (bool, int, str, type(None))) else str(value)
