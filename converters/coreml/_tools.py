"""coremltools: imported only where a package is written, for that takes seconds, and without its greetings."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, TypeAlias

from bitnet_onnx.errors import InputError

#: A value of a MIL program; coremltools has no types.
Value: TypeAlias = Any

_LOGGER: Final = "coremltools"


@dataclass(frozen=True, slots=True)
class Tools:
    """The parts of coremltools that are used here.

    Attributes:
        version: of coremltools.
        ops: the builder: a method for each operation.
        types: element types by their MIL names.
        new_symbol: makes an unknown dimension.
        function: class of a function.
        program: class of a program.
        range_dim: class of a dimension with bounds.
        tensor_type: class of an input's description.
        targets: deployment targets by name.
        blob_writer: class that writes a weight file.
        program_exporter: class that turns a program into its protobuf.
        program_proto: the module of a program's protobuf.
        model_exporter: class that puts the description of inputs and outputs around it.
    """

    version: str
    ops: Any
    types: Any
    new_symbol: Any
    function: Any
    program: Any
    range_dim: Any
    tensor_type: Any
    targets: Any
    blob_writer: Any
    program_exporter: Any
    program_proto: Any
    model_exporter: Any


@cache
def load_tools() -> Tools:
    """Import coremltools.

    Raises:
        InputError: it is not installed, or cannot write packages on this system.
    """
    with quiet():
        try:
            import coremltools
            from coremltools.converters.mil.backend.mil.load import CoreMLProtoExporter, MILProtoExporter
            from coremltools.converters.mil.mil import Builder, Function, Program, get_new_symbol, types
            from coremltools.libmilstoragepython import _BlobStorageWriter
            from coremltools.proto import MIL_pb2
        except ImportError as error:
            if error.name == "coremltools":
                raise InputError("--to coreml needs coremltools: pip install 'bitnet-onnx[coreml]'") from error
            raise InputError(f"coremltools cannot write packages here: {error}") from error
    return Tools(
        version=str(coremltools.__version__),
        ops=Builder,
        types=types,
        new_symbol=get_new_symbol,
        function=Function,
        program=Program,
        range_dim=coremltools.RangeDim,
        tensor_type=coremltools.TensorType,
        targets=coremltools.target,
        blob_writer=_BlobStorageWriter,
        program_exporter=MILProtoExporter,
        program_proto=MIL_pb2,
        model_exporter=CoreMLProtoExporter,
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what coremltools says of missing Apple frameworks, of versions and of what numpy deprecates."""
    logger = logging.getLogger(_LOGGER)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
