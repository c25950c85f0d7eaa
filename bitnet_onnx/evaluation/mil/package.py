"""A Core ML package that is open: its program, and its weights as they are stored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from bitnet_onnx.errors import PackageError
from bitnet_onnx.evaluation.mil._blob import BlobFile
from bitnet_onnx.evaluation.mil._bundle import Bundle
from bitnet_onnx.evaluation.mil._call import Value
from bitnet_onnx.evaluation.mil._types import Element, TensorType
from bitnet_onnx.evaluation.mil.program import Constant, FileValue, Literal, Program, read_program

_MAX_FILES: Final = 16
#: Elements that are read as soon as they are named; larger tensors stay where they are.
_SMALL: Final = 1 << 16


class Package:
    """An open package.

    Args:
        bundle: its files.
        program: what it computes.
    """

    def __init__(self, bundle: Bundle, program: Program) -> None:
        self.path = bundle.path
        self.program = program
        self._bundle = bundle
        self._files: dict[str, BlobFile] = {}

    def constant(self, constant: Constant, name: str) -> Value:
        """The value of a constant; large ones as they are stored.

        Raises:
            PackageError: the file of weights contradicts the program.
        """
        if isinstance(constant, Literal):
            element = constant.type.element if isinstance(constant.type, TensorType) else Element.STRING
            return Value(constant.value, element)
        tensor = self._file(constant).tensor(constant.offset, constant.type, name)
        if np.prod(tensor.shape) <= _SMALL:
            return Value(tensor.rows(0, tensor.shape[0]), tensor.element)
        return Value(tensor, tensor.element)

    def check_files(self) -> None:
        """Look at the records of all weights that the program names, so that they are known not to overlap."""
        for function in self.program.functions.values():
            for operation in function.operations:
                found = [*operation.attributes.values()]
                for bindings in operation.inputs.values():
                    found += [binding for binding in bindings if not isinstance(binding, str)]
                for constant in found:
                    if isinstance(constant, FileValue):
                        self._file(constant).tensor(constant.offset, constant.type, operation.name)

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            file.close()

    def _file(self, constant: FileValue) -> BlobFile:
        found = self._files.get(constant.file)
        if found is None:
            if len(self._files) == _MAX_FILES:
                raise PackageError(f"{self._bundle.model}: weights in more than {_MAX_FILES} files, the limit")
            found = self._files[constant.file] = BlobFile(self._bundle.weights(constant.file))
        return found


@contextmanager
def open_package(path: Path) -> Iterator[Package]:
    """Open a `.mlpackage`.

    Raises:
        InputError: coremltools is not installed.
        PackageError: the package is broken or leads elsewhere.
    """
    bundle = Bundle.open(path)
    package = Package(bundle, read_program(bundle))
    try:
        package.check_files()
        yield package
    finally:
        package.close()
