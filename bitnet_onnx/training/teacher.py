"""The model that a training run learns from, beside its texts."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from bitnet_onnx.converters.model import open_model
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.errors import CheckpointError, InputError
from bitnet_onnx.json_input import load_object
from bitnet_onnx.model_zoo import resolve
from bitnet_onnx.quantized import FloatArray
from bitnet_onnx.training._float_session import LOGITS, FloatSession, float_graph
from bitnet_onnx.training.graph.decoder import TrainingGraph
from bitnet_onnx.training.graph.options import RELATION_STATES, teacher_state
from bitnet_onnx.training.graph.pruning import keep_outputs
from bitnet_onnx.training.settings import LossSettings
from bitnet_onnx.training.start import InitialTensors, Origin, Start, StoredTensors

_log = logging.getLogger(__name__)


def relation_layer(settings: LossSettings, spec: DecoderSpec, whose: str = "the model") -> int:
    """The layer whose attention is compared, counted from 0.

    Raises:
        InputError: there is no such layer.
    """
    layers = spec.num_hidden_layers
    if not -layers <= settings.relation_layer < layers:
        raise InputError(f"losses.relation_layer is {settings.relation_layer}: {whose} has {layers} layers")
    return settings.relation_layer % layers


def relation_heads(settings: LossSettings, student: DecoderSpec, teacher: DecoderSpec) -> int:
    """The number of heads that the features of queries, keys and values are cut into to be compared.

    Where the settings leave it open, as many as the student has attention heads, or the next fewer that divide.

    Raises:
        InputError: it does not divide the features of one of the models.
    """
    widths = [student.attention_size, student.key_value_size, teacher.attention_size, teacher.key_value_size]
    common = math.gcd(*widths)
    heads = settings.relation_heads
    if not heads:
        return max(count for count in range(1, student.num_attention_heads + 1) if common % count == 0)
    if common % heads == 0:
        return heads
    raise InputError(
        f"losses.relation_heads is {heads}: it must divide the features of queries and of keys, "
        f"{widths[0]} and {widths[1]} of the model, {widths[2]} and {widths[3]} of its teacher"
    )


def teacher_graph(spec: DecoderSpec, max_length: int, *, logits: bool, layer: int | None) -> TrainingGraph:
    """The float graph of a teacher: its logits where they are asked for, and the states of a layer."""
    graph = float_graph(spec, max_length, layer)
    if not logits:
        keep_outputs(graph.model.graph, RELATION_STATES)
    return graph


class Teacher:
    """Computes what a decoder makes of tokens, in floats.

    Args:
        spec: what it is.
        tensors: its weights.
        max_length: most tokens of a sequence.
        logits: give them.
        layer: whose queries, keys and values to give, or None.
        threads: that it computes with; 0 is all cores.

    Raises:
        InputError: the decoder has no room for so many tokens.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        tensors: InitialTensors,
        *,
        max_length: int,
        logits: bool = True,
        layer: int | None = None,
        threads: int = 0,
    ) -> None:
        self.spec: Final = spec
        self._session = FloatSession(teacher_graph(spec, max_length, logits=logits, layer=layer), tensors, threads)
        self._widths = {LOGITS: spec.vocab_size} if logits else {}
        if layer is not None:
            query, *others = RELATION_STATES
            self._widths |= {query: spec.attention_size, **dict.fromkeys(others, spec.key_value_size)}

    @property
    def nbytes(self) -> int:
        """Of its weights."""
        return self._session.nbytes

    def __call__(self, input_ids: npt.NDArray[np.int64]) -> dict[str, FloatArray]:
        """The inputs of a student's graph that a teacher gives.

        Args:
            input_ids: int64 `[batch, length]`.

        Returns:
            `teacher.logits`, `teacher.query`, `teacher.key`, `teacher.value`, those that are asked for: float32
            `[batch, length, width]`.
        """
        shapes = {name: (*input_ids.shape, width) for name, width in self._widths.items()}
        return {teacher_state(name): value for name, value in self._session(input_ids, shapes).items()}


def open_teacher(settings: LossSettings, start: Start, *, max_length: int, threads: int = 0) -> Teacher | None:
    """The teacher that the losses need, or None where they need none.

    Args:
        settings: say which, and what is learned from it.
        start: of the student, still open; its origin teaches where no other is named.
        max_length: most tokens of a sequence.
        threads: that it computes with; 0 is all cores.

    Raises:
        InputError: it does not fit the student, by name.
        CheckpointError, PackageError, UnsupportedError: it cannot be read.
        ZooError: its name is unknown.
    """
    if settings.distillation is None and settings.relation is None:
        return None
    if settings.teacher is None:
        if start.origin is None:
            raise InputError("losses.teacher is missing: a random start has nothing to teach; name a checkpoint")
        return _teacher(settings, start, "the model's own start", start.origin, max_length, threads)
    with open_model(resolve(settings.teacher)) as source:
        name = f"losses.teacher {source.name}"
        _check_tokenizer(name, start, source.spec, source.tokenizer)
        origin = Origin(source.spec, StoredTensors(source.tensors, rounded=True))
        return _teacher(settings, start, name, origin, max_length, threads)


def _teacher(settings: LossSettings, start: Start, name: str, origin: Origin, max_length: int, threads: int) -> Teacher:
    layer = None
    if settings.relation is not None:
        layer = relation_layer(settings, origin.spec, name)
        relation_heads(settings, start.spec, origin.spec)
    try:
        return Teacher(
            origin.spec,
            origin.tensors,
            max_length=max_length,
            logits=settings.distillation is not None,
            layer=layer,
            threads=threads,
        )
    except InputError as error:
        raise type(error)(f"{name}: {error}") from error


def _check_tokenizer(name: str, start: Start, spec: DecoderSpec, files: Mapping[str, bytes]) -> None:
    """Refuse a teacher whose tokens are others.

    Raises:
        InputError: the vocabularies differ.
    """
    if spec.vocab_size != start.spec.vocab_size:
        raise InputError(
            f"{name}: vocab_size is {spec.vocab_size}, that of the model {start.spec.vocab_size}: "
            f"a teacher needs the same tokens"
        )
    ours, theirs = (_document(given) for given in (start.tokenizer, files))
    tokens, others = (_vocabulary(document) for document in (ours, theirs))
    if tokens != others:
        differing = sorted({token for token, _ in tokens ^ others}, key=lambda token: (len(token), token))
        raise InputError(
            f"{name}: its tokenizer has other tokens than the model's: {len(differing)} differ, "
            f"such as {ascii(differing[0])[:40]}; a teacher needs the same"
        )
    if ours != theirs:
        _log.warning("%s: its tokenizer has the same tokens, but divides texts by other rules", name)


def _document(files: Mapping[str, bytes]) -> dict[str, object]:
    data = files["tokenizer.json"]
    return load_object(data, "tokenizer.json", max_bytes=len(data), error=CheckpointError)


def _vocabulary(document: Mapping[str, object]) -> frozenset[tuple[str, str]]:
    """Tokens with their ids, or their scores where the order is the id; added tokens beside the others."""
    model, added = document.get("model"), document.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    found: set[tuple[str, str]] = set()
    if isinstance(vocabulary, dict):
        found |= {(token, json.dumps(number)) for token, number in vocabulary.items()}
    elif isinstance(vocabulary, list):
        found |= {(json.dumps(entry), str(number)) for number, entry in enumerate(vocabulary)}
    for token in added if isinstance(added, list) else []:
        if isinstance(token, dict):
            found.add((str(token.get("content")), json.dumps(token.get("id"))))
    return frozenset(found)
