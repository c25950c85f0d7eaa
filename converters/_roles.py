"""A checkpoint seen by role: every tensor that the decoder needs, none that nobody knows."""

from __future__ import annotations

import difflib

from bitnet_onnx.converters.checkpoints import Checkpoint
from bitnet_onnx.converters.families import Family
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.errors import CheckpointError, UnsupportedError
from bitnet_onnx.quantized import FloatArray


class CheckpointTensors:
    """Reads tensors by role, after checking names and shapes against the specification.

    Raises:
        CheckpointError: a tensor is missing, has another shape than the configuration demands, or belongs to nothing.
        UnsupportedError: a tensor is packed.
    """

    def __init__(self, checkpoint: Checkpoint, family: Family, spec: DecoderSpec) -> None:
        self._checkpoint = checkpoint
        self._names: dict[str, str] = {}
        for role, shape in spec.tensors():
            name = family.tensor_name(role)
            info = checkpoint.tensors.get(name)
            if info is None:
                near = difflib.get_close_matches(name, checkpoint.tensors, n=1)
                hint = f"; the nearest name is {near[0]!r}" if near else ""
                raise CheckpointError(f"{checkpoint.path.name}: tensor {name!r} is missing{hint}")
            if info.dtype == "U8":
                raise UnsupportedError(
                    f"{info.file}: tensor {name!r} is U8: packed ternary weights are not read; "
                    f"convert the checkpoint with the unpacked ones"
                )
            if info.shape != shape:
                raise CheckpointError(
                    f"{info.file}: tensor {name!r} has shape {list(info.shape)}: "
                    f"the configuration demands {list(shape)}"
                )
            self._names[role] = name
        self._refuse_unknown(family, spec)

    def _refuse_unknown(self, family: Family, spec: DecoderSpec) -> None:
        known = set(self._names.values())
        if spec.tie_word_embeddings:
            known.add(family.tensor_name("lm_head.weight"))
        for name, info in self._checkpoint.tensors.items():
            if name not in known and not name.endswith(family.ignored):
                raise CheckpointError(
                    f"{info.file}: tensor {name!r} has no place in a {spec.family} decoder; "
                    f"is the configuration that of another model?"
                )

    def shape(self, role: str) -> tuple[int, ...]:
        """The tensor's shape."""
        return self._checkpoint.tensors[self._names[role]].shape

    def read(self, role: str) -> FloatArray:
        """A whole tensor as float32."""
        return self._checkpoint.read(self._names[role])

    def read_rows(self, role: str, start: int, stop: int) -> FloatArray:
        """Rows `start` to `stop` of a matrix as float32."""
        return self._checkpoint.read_rows(self._names[role], start, stop)
