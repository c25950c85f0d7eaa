"""A checkpoint seen by role: every tensor that the decoder needs, none that nobody knows."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import re
import threading
from collections.abc import Iterable
from itertools import islice
from typing import Final

import numpy as np
import numpy.typing as npt

from bitnet_onnx.converters.checkpoints import BITNET, Checkpoint
from bitnet_onnx.converters.families import Family
from bitnet_onnx.converters.families._family import Rows, Source
from bitnet_onnx.converters.ternary_scheme import TernaryScheme
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.errors import CheckpointError, UnsupportedError
from bitnet_onnx.json_input import shown
from bitnet_onnx.quantized import FloatArray, QuantizedTensor
from bitnet_onnx.ternary import quantize_absmean

_log = logging.getLogger(__name__)

_LINEAR: Final = re.compile(r"layers\.\d+\.(attn|mlp)\.[a-z]+_proj")
#: More than any family has: q, k and v are three.
_ROLES_OF_A_TENSOR: Final = 8
_LINEAR_NORM: Final = re.compile(rf"({_LINEAR.pattern})\.norm\.weight")


class CheckpointTensors:
    """Reads tensors by role, after checking names and shapes against the specification.

    Args:
        checkpoint: where they lie.
        family: what they are called.
        spec: what there must be.
        scheme: how a checkpoint with a `quantization_config` stores its linear layers.

    Raises:
        CheckpointError: a tensor is missing, has another shape than the configuration demands, or belongs to nothing.
    """

    def __init__(
        self, checkpoint: Checkpoint, family: Family, spec: DecoderSpec, scheme: TernaryScheme | None = None
    ) -> None:
        self._checkpoint = checkpoint
        self._sources: dict[str, Source] = {}
        # A configuration may claim any number of layers: with more roles than the tensors can serve, one is missing.
        self._shapes = dict(islice(spec.tensors(), _ROLES_OF_A_TENSOR * (1 + len(checkpoint.tensors))))
        sources = {role: _source(family, spec, role) for role in self._shapes}
        self._beginnings = _beginnings(family, (source.name for source in sources.values()), checkpoint)
        for role, shape in self._shapes.items():
            source = dataclasses.replace(sources[role], name=self._stored_name(sources[role].name))
            self._check(source, shape)
            self._sources[role] = source
        self._refuse_unknown(family, spec)
        self._last: tuple[str, FloatArray] | None = None
        self._lock = threading.Lock()
        self._masters = frozenset(
            role
            for role in self._shapes
            if _LINEAR.fullmatch(role.removesuffix(".weight")) and self._is_master(role, family, scheme)
        )
        self._online = scheme is not None and scheme.online
        if scheme is not None:
            self._check_scheme(scheme)

    def shape(self, role: str) -> tuple[int, ...]:
        """The tensor's shape."""
        return self._shapes[role]

    def stored(self, role: str) -> tuple[str, str]:
        """The stored type of a tensor, and the file that holds it."""
        info = self._checkpoint.tensors[self._sources[role].name]
        return info.dtype, info.file

    def read(self, role: str) -> FloatArray:
        """A whole tensor as float32."""
        source, shape = self._sources[role], self._shapes[role]
        if source.constant is not None:
            return np.full(shape, source.constant, np.float32)
        if source.rows is not None and len(shape) == 2:
            return self.read_rows(role, 0, shape[0])
        values = self._checkpoint.read(source.name)
        if source.transposed:
            values = np.ascontiguousarray(values.T)
        if source.rows is not None:
            values = values[_indices(source.rows)]
        if source.offset:
            values += np.float32(source.offset)
        return values

    def read_rows(self, role: str, start: int, stop: int) -> FloatArray:
        """Rows `start` to `stop` of a matrix as float32."""
        source = self._sources[role]
        if source.transposed:
            rows = slice(start, stop) if source.rows is None else _indices(source.rows)[start:stop]
            return np.ascontiguousarray(self._whole(source.name)[:, rows].T)
        if source.rows is None:
            return self._checkpoint.read_rows(source.name, start, stop)
        return np.concatenate(
            [self._checkpoint.read_rows(source.name, *part) for part in _ranges(source.rows, start, stop)]
        )

    def _whole(self, name: str) -> FloatArray:
        """A tensor that is read for a few of its columns; the next ones are likely to be asked for soon."""
        with self._lock:
            if self._last is None or self._last[0] != name:
                self._last = name, self._checkpoint.read(name)
            return self._last[1]

    def quantized(self, role: str) -> QuantizedTensor | None:
        """The codes and scales of a matrix that is stored in them or rounded to them in every forward, or None."""
        source = self._sources[f"{role}.weight"]
        tensor = self._checkpoint.read_quantized(source.name)
        if tensor is None and self._online and self.is_master(role):
            # Of the stored matrix: where several roles share one, they share its mean.
            tensor = quantize_absmean(self._checkpoint.read(source.name))
        if tensor is None or source.rows is None:
            return tensor
        rows = _indices(source.rows)
        scale = tensor.scale if tensor.scale.shape == (1,) and not tensor.grid.group_size else tensor.scale[rows]
        return dataclasses.replace(tensor, raw=tensor.raw[rows], scale=scale)

    def is_master(self, role: str) -> bool:
        """Whether a matrix of floats was trained to be rounded to ternary."""
        return f"{role}.weight" in self._masters

    @property
    def trained_ternary(self) -> bool:
        """Whether the model was trained with ternary weights."""
        return bool(self._masters)

    def _is_master(self, role: str, family: Family, scheme: TernaryScheme | None) -> bool:
        if not role.endswith(".weight"):
            return False
        if scheme is None:
            return family.trained_ternary
        # transformers replaces linear layers, and none that stores its weight transposed.
        return not self._sources[role].transposed and scheme.covers(_module(self._sources[role]))

    def _check_scheme(self, scheme: TernaryScheme) -> None:
        """What `quantization_config` promises of the linear layers."""
        heads = [role for role in ("lm_head.weight",) if role in self._sources and scheme.covers("lm_head")]
        for role in [*sorted(self._masters), *heads]:
            info = self._checkpoint.tensors[self._sources[role].name]
            if scheme.packed and info.dtype != BITNET:
                raise CheckpointError(
                    f"{info.file}: tensor {info.name!r} is {info.dtype} without a weight_scale: quantization_config "
                    f"says that it is packed (linear_class {scheme.linear_class}, offline)"
                )
        if scheme.linear_norm_epsilon is not None:
            for role, source in self._sources.items():
                if _LINEAR.fullmatch(role.removesuffix(".weight")) and role not in self._masters:
                    raise UnsupportedError(
                        f"config.json: quantization_config: use_rms_norm with {_module(source)!r} in "
                        f"modules_to_not_convert: a norm inside some linear layers of a block only is not supported"
                    )

    def _stored_name(self, name: str) -> str:
        """A family's name for a tensor as this checkpoint has it."""
        for beginning, other in self._beginnings.items():
            if name.startswith(beginning):
                return other + name.removeprefix(beginning)
        return name

    def _check(self, source: Source, shape: tuple[int, ...]) -> None:
        if source.constant is not None:
            return
        info = self._checkpoint.tensors.get(source.name)
        if info is None:
            near = difflib.get_close_matches(source.name, self._checkpoint.tensors, n=1)
            hint = f"; the nearest name is {shown(near[0])}" if near else ""
            raise CheckpointError(f"{self._checkpoint.path.name}: tensor {source.name!r} is missing{hint}")
        if source.rows is not None:
            shape = (source.rows.total, *shape[1:])
        if source.transposed:
            shape = shape[::-1]
        if info.shape != shape:
            raise CheckpointError(
                f"{info.file}: tensor {source.name!r} has shape {list(info.shape)}: "
                f"the configuration demands {list(shape)}"
            )

    def _refuse_unknown(self, family: Family, spec: DecoderSpec) -> None:
        known = {source.name for source in self._sources.values()}
        if spec.tie_word_embeddings:
            head = family.source(spec, "lm_head.weight").name
            known |= _other_names(family, head)
        left_out = [name for name in self._checkpoint.tensors if name.startswith(family.left_out) and name not in known]
        if left_out:
            _log.warning(
                "%s: %d tensors that are not of the language model are left out: %s; the package reads text only",
                self._checkpoint.path.name,
                len(left_out),
                ", ".join(part for part in family.left_out if any(name.startswith(part) for name in left_out)),
            )
        known.update(left_out)
        for name, info in self._checkpoint.tensors.items():
            if name not in known and not name.endswith(family.ignored):
                raise CheckpointError(
                    f"{info.file}: tensor {shown(name)} has no place in a {spec.family} decoder; "
                    f"is the configuration that of another model?"
                )


def _source(family: Family, spec: DecoderSpec, role: str) -> Source:
    """Where a tensor lies; the norm inside a linear layer, which any family may have, stands beside its weight."""
    found = _LINEAR_NORM.fullmatch(role)
    if found is None:
        return family.source(spec, role)
    return Source(f"{_module(family.source(spec, f'{found[1]}.weight'))}.rms_norm.weight")


def _module(source: Source) -> str:
    return source.name.removesuffix(".weight")


def _beginnings(family: Family, names: Iterable[str], checkpoint: Checkpoint) -> dict[str, str]:
    """For each beginning of names of the family, that which the checkpoint has."""
    wanted = list(names)
    found = {}
    for beginning, others in family.aliases.items():
        rest = [name.removeprefix(beginning) for name in wanted if name.startswith(beginning)]
        fitting = (other for other in (beginning, *others) if any(other + name in checkpoint.tensors for name in rest))
        found[beginning] = next(fitting, beginning)
    return found


def _other_names(family: Family, name: str) -> set[str]:
    """All names that a tensor may have."""
    names = {name}
    for beginning, others in family.aliases.items():
        if name.startswith(beginning):
            names |= {other + name.removeprefix(beginning) for other in others}
    return names


def _indices(rows: Rows) -> npt.NDArray[np.intp]:
    """The numbers of the rows, in their order."""
    blocks = rows.start + rows.stride * np.arange(rows.count)
    return (blocks[:, None] + np.arange(rows.block)).ravel()


def _ranges(rows: Rows, start: int, stop: int) -> list[tuple[int, int]]:
    """The ranges of the stored tensor that hold rows `start` to `stop` of the role."""
    found = []
    for block in range(start // rows.block, -(-stop // rows.block)):
        first = max(start - block * rows.block, 0)
        last = min(stop - block * rows.block, rows.block)
        base = rows.start + block * rows.stride
        found.append((base + first, base + last))
    return found
