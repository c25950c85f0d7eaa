"""Every error that this package raises on purpose, under one root."""

from __future__ import annotations


class BitnetOnnxError(Exception):
    """Root of all errors; its text is one line for the user: what is wrong, where, what to do."""

    #: Exit status of the command line when this error ends it.
    exit_status = 1


class InputError(BitnetOnnxError):
    """An argument, option or value that the user gave is wrong."""

    exit_status = 2


class CheckpointError(InputError):
    """A checkpoint file is broken, contradicts itself or is not to be trusted."""


class UnsupportedError(InputError):
    """The input is sound but names something (family, activation, type) that is not implemented."""


class PackageError(InputError):
    """A directory is not a usable ONNX package, or cannot be written as one."""


class OperatorError(BitnetOnnxError):
    """The operator library, or another compiled one, is not there or cannot be used."""

    exit_status = 2


class ZooError(InputError):
    """A model-zoo entry is unknown, cannot be fetched, or does not match its checksum."""


class TrainingError(BitnetOnnxError):
    """A training run that was sound at its start cannot go on."""
