"""What a training run starts from: a checkpoint that `convert` reads, or a random decoder."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from bitnet_onnx.converters._config import Config
from bitnet_onnx.converters.families import bitnet, find
from bitnet_onnx.converters.model import SourceModel, Tensors, describe, generation_config_of, open_model
from bitnet_onnx.converters.ternary_scheme import ternary_scheme
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.errors import InputError, UnsupportedError
from bitnet_onnx.model_zoo import resolve
from bitnet_onnx.quantized import FloatArray
from bitnet_onnx.ternary import detect
from bitnet_onnx.training._bitnet_config import as_bitnet
from bitnet_onnx.training._random_start import RandomTensors, architecture, given_tokenizer, with_token_ids
from bitnet_onnx.training.parameters import ParameterStore
from bitnet_onnx.training.settings import BlockWeights, ModelSettings

logger = logging.getLogger(__name__)

#: Makes a tokenizer of at most so many entries out of texts: its files by name.
TrainTokenizer = Callable[[Iterable[str], int], Mapping[str, bytes]]

#: Floats that are read at once where a matrix can be read in parts.
_CHUNK: Final = 1 << 22


class InitialTensors(Protocol):
    """Values of a decoder's tensors by role."""

    def read_into(self, role: str, target: FloatArray) -> None:
        """Write the tensor `role` into a contiguous float32 array of its shape."""
        ...


@dataclass(frozen=True, slots=True)
class Origin:
    """The model that a start was made of, as it can teach.

    Attributes:
        spec: what it is, without sub-norms that were put in.
        tensors: the values that it computes with.
    """

    spec: DecoderSpec
    tensors: InitialTensors


@dataclass(frozen=True, slots=True)
class Start:
    """A decoder before its training; open as long as the context that gave it.

    Attributes:
        name: what it calls itself.
        spec: what it is, with the sub-norms that were put in.
        config: content of config.json, without a `quantization_config`.
        generation_config: content of generation_config.json.
        tokenizer: the tokenizer's files by name.
        tensors: the values as floats.
        ternary: matrices that are ternary and will be trained as such are lifted to masters.
        origin: what it was made of, or None where it is random.
        put_in: weights of the sub-norms that were put in; 1, until `with_norms` says otherwise.
    """

    name: str
    spec: DecoderSpec
    config: Mapping[str, object]
    generation_config: Mapping[str, object]
    tokenizer: Mapping[str, bytes]
    tensors: InitialTensors
    ternary: bool = False
    origin: Origin | None = None
    put_in: frozenset[str] = frozenset()

    @property
    def size(self) -> int:
        """Number of weights."""
        return sum(math.prod(shape) for _, shape in self.spec.tensors())

    @property
    def decayed(self) -> frozenset[str]:
        """Tensors with weight decay: the matrices."""
        return frozenset(role for role, shape in self.spec.tensors() if len(shape) == 2)

    def read(self, role: str) -> FloatArray:
        """A tensor of the float model."""
        target = np.empty(dict(self.spec.tensors())[role], np.float32)
        self.tensors.read_into(role, target)
        return target

    def with_norms(self, sizes: Mapping[str, float]) -> Start:
        """The same with other weights for norms: one number for all features of each."""
        return replace(self, tensors=_WithNorms(self.tensors, sizes))

    def fill(self, store: ParameterStore) -> None:
        """Write the start of the training to every tensor of a store, one after the other.

        A matrix that is ternary already is not what absmean makes of itself, the mean of {-a, 0, a} being less than
        `a`: it is divided by the share of its weights that are not zero, and is then rounded to exactly what it was.
        """
        for role in store:
            target = store.value(role)
            self.tensors.read_into(role, target)
            if self.ternary and is_linear(role.removesuffix(".weight")):
                _lift(target)


@contextmanager
def open_start(
    settings: ModelSettings,
    *,
    seed: int = 0,
    texts: Iterable[str] | None = None,
    train_tokenizer: TrainTokenizer | None = None,
) -> Iterator[Start]:
    """Open what a training run starts from.

    Args:
        settings: say what it is.
        seed: of a random start.
        texts: on which a tokenizer is trained, where a random start has none; read then only.
        train_tokenizer: does that.

    Raises:
        InputError: the settings contradict themselves.
        CheckpointError, PackageError: the source is broken.
        UnsupportedError: it is of a kind that is not implemented, or has no room for sub-norms.
        ZooError: the source is neither a path nor a name of the zoo.
    """
    if (settings.source is None) == (settings.architecture is None):
        raise InputError("model: give either source (a checkpoint, package or zoo name) or architecture, not both")
    if settings.architecture is not None:
        yield _random(settings, settings.architecture, seed, texts, train_tokenizer)
        return
    if settings.tokenizer is not None:
        raise InputError("model.tokenizer is for a random start: a source has its own; leave it out")
    with open_model(resolve(str(settings.source))) as source:
        yield _of_source(settings, source)


def _random(
    settings: ModelSettings,
    fields: Mapping[str, object],
    seed: int,
    texts: Iterable[str] | None,
    train_tokenizer: TrainTokenizer | None,
) -> Start:
    if seed < 0:
        raise InputError(f"seed is {seed}: it must not be negative")
    config = architecture(fields)
    spec = describe(config).spec
    if settings.tokenizer is not None:
        tokenizer = given_tokenizer(settings.tokenizer, spec.vocab_size)
    elif train_tokenizer is not None and texts is not None:
        tokenizer = train_tokenizer(texts, spec.vocab_size)
    else:
        raise InputError("model.tokenizer is missing, and there is no text to train one on")
    start = Start(
        name=f"random {config.string('model_type')}",
        spec=spec,
        config=with_token_ids(config.fields, tokenizer),
        generation_config={},
        tokenizer=tokenizer,
        tensors=RandomTensors.of(config, spec, seed),
    )
    start = _as_bitnet(start) if settings.sub_norms else start
    return replace(
        start,
        generation_config=generation_config_of(Path("model.architecture"), start.config, {}, start.spec),
    )


def _of_source(settings: ModelSettings, source: SourceModel) -> Start:
    config = Config(source.config)
    scheme = ternary_scheme(config)
    ternary = settings.weights is BlockWeights.TERNARY
    if source.spec.linear_norm_epsilon is not None and not ternary:
        raise UnsupportedError(
            f"{source.path}: a norm stands inside each linear layer, which only a ternary model can be saved with; "
            f'set model.weights = "ternary"'
        )
    online = scheme is not None and scheme.online and source.format != "package"
    start = Start(
        name=source.name,
        spec=source.spec,
        config={name: value for name, value in source.config.items() if name != "quantization_config"},
        generation_config=source.generation_config,
        tokenizer=source.tokenizer,
        tensors=StoredTensors(source.tensors),
        # Masters that are rounded in every forward are what they are.
        ternary=ternary and not online,
        origin=Origin(source.spec, StoredTensors(source.tensors, rounded=True)),
    )
    # transformers does not know the first reproduction of BitNet, which has sub-norms under other names.
    if settings.sub_norms or find(config) is bitnet.ORIGINAL:
        return _as_bitnet(start)
    return start


def _as_bitnet(start: Start) -> Start:
    """The same with sub-norms, whose weights are 1 where there were none.

    BitDistill (Wu et al., 2025) puts them in before it trains on; `sub_norms.fit_sub_norms` finds better weights.
    """
    config, spec = as_bitnet(start.config, start.spec, start.name)
    added = frozenset(role for role, _ in spec.tensors()) - {role for role, _ in start.spec.tensors()}
    return replace(start, spec=spec, config=config, put_in=added).with_norms(dict.fromkeys(added, 1.0))


@dataclass(frozen=True, slots=True)
class _WithNorms:
    """Tensors, and norms beside them.

    Attributes:
        tensors: the others.
        sizes: the one value of each norm's weights.
    """

    tensors: InitialTensors
    sizes: Mapping[str, float]

    def read_into(self, role: str, target: FloatArray) -> None:
        """Write a tensor."""
        size = self.sizes.get(role)
        if size is None:
            self.tensors.read_into(role, target)
        else:
            target.fill(size)


@dataclass(frozen=True, slots=True)
class StoredTensors:
    """The tensors of a source as floats.

    Attributes:
        tensors: of the source.
        rounded: matrices that every forward rounds are read as what they are rounded to, and not as masters.
    """

    tensors: Tensors
    rounded: bool = False

    def read_into(self, role: str, target: FloatArray) -> None:
        """Write a tensor, a few rows of a matrix at a time."""
        if target.ndim != 2:
            target[...] = self.tensors.read(role)
            return
        if self.rounded and self.tensors.is_master(role.removesuffix(".weight")):
            quantized = self.tensors.quantized(role.removesuffix(".weight"))
            if quantized is not None:
                target[...] = quantized.dequantize()
                return
        step = max(1, _CHUNK // target.shape[1])
        for first in range(0, len(target), step):
            target[first : first + step] = self.tensors.read_rows(role, first, min(first + step, len(target)))


def is_linear(role: str) -> bool:
    """Whether a role without `.weight` is one of the matrices that `model.weights` is about.

    Those that lead from and to a narrower embedding are among them.
    """
    return role in {"project_in", "project_out"} or (role.startswith("layers.") and role.endswith("_proj"))


def _lift(matrix: FloatArray) -> None:
    """Make of {-a, 0, a} the masters that absmean rounds to it; any other matrix stays as it is."""
    exact = detect(matrix)
    if exact is not None and exact.scale.shape == (1,):
        matrix *= np.float32(matrix.size / np.count_nonzero(matrix))
