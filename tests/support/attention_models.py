"""Models of one attention node, of our domain or ONNX Runtime's, and random operands for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from bitnet_onnx.attention import Attended, AttentionAttributes, CacheScales, Rotary, group_query_attention
from bitnet_onnx.custom_ops import library_path

OURS, MICROSOFT = "bitnet", "com.microsoft"
OUTPUTS = ("output", "present_key", "present_value")
_FIRST = ("query", "key", "value", "past_key", "past_value", "seqlens_k", "total_sequence_length")
#: Where each domain's operator has its optional inputs.
_PLACES = {
    OURS: {"query_seqlens": 9, "key_scale": 10, "value_scale": 11},
    MICROSOFT: {"key_scale": 12, "value_scale": 13, "query_seqlens": 16},
}
#: What ONNX Runtime's operator has to be told of an int8 cache.
_MICROSOFT_INT8 = {"kv_cache_bit_width": 8, "k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}


def node_attributes(attributes: AttentionAttributes) -> dict[str, Any]:
    at = attributes
    given: dict[str, Any] = {
        "num_heads": at.num_heads,
        "kv_num_heads": at.kv_num_heads,
        "do_rotary": int(at.do_rotary),
        "rotary_interleaved": int(at.rotary_interleaved),
        "local_window_size": at.local_window_size,
        "softcap": float(at.softcap),
    }
    return given | ({} if at.scale is None else {"scale": at.scale})


def attention_model(feeds: Mapping[str, np.ndarray], attributes: Mapping[str, Any], domain: str = OURS) -> bytes:
    """A model of one node with those inputs that `feeds` names."""
    places = dict(zip((*_FIRST, "cos_cache", "sin_cache"), range(9), strict=True)) | _PLACES[domain]
    names = [""] * (max(place for name, place in places.items() if name in feeds) + 1)
    for name in feeds:
        names[places[name]] = name
    if domain == MICROSOFT and "key_scale" in feeds:
        attributes = {**attributes, **_MICROSOFT_INT8}
    node = helper.make_node("GroupQueryAttention", names, OUTPUTS, name="the_node", domain=domain, **attributes)
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(feeds[name].dtype), None)
        for name in names
        if name
    ]
    cache = helper.np_dtype_to_tensor_dtype(feeds["past_key"].dtype)
    types = (TensorProto.FLOAT, cache, cache)
    outputs = [helper.make_tensor_value_info(name, type_, None) for name, type_ in zip(OUTPUTS, types, strict=True)]
    graph = helper.make_graph([node], "one_node", inputs, outputs)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(domain, 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return model.SerializeToString()


def open_model(model: bytes, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library_path()))
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def rotary_tables(positions: int, dim: int) -> Rotary:
    angles = np.outer(np.arange(positions), 10000.0 ** (-np.arange(0, dim, 2) / dim))
    return Rotary(np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))


@dataclass(frozen=True)
class AttentionCase:
    """Random operands of one call.

    Attributes:
        attributes: of the node.
        head_dim: D.
        sequence: S.
        totals: tokens of each row after the call.
        past: length of the buffers before it.
        counts: query_seqlens, or None.
        separate: key and value are inputs of their own.
        rotary_dim: rotated part of a head, or 0 for the whole.
        int8: keys and values are int8.
    """

    attributes: AttentionAttributes
    head_dim: int
    sequence: int
    totals: Sequence[int]
    past: int
    counts: Sequence[int] | None = None
    separate: bool = False
    rotary_dim: int = 0
    int8: bool = False
    tensors: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        at, dim, batch = self.attributes, self.head_dim, len(self.totals)
        rng = np.random.default_rng(dim * 7 + self.sequence * 1009 + self.past)
        shapes = {
            "query": (batch, self.sequence, at.num_heads * dim),
            "key": (batch, self.sequence, at.kv_num_heads * dim),
            "value": (batch, self.sequence, at.kv_num_heads * dim),
            "past_key": (batch, at.kv_num_heads, self.past, dim),
            "past_value": (batch, at.kv_num_heads, self.past, dim),
        }
        self.tensors.update({name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()})
        if self.int8:
            for name in ("past_key", "past_value"):
                self.tensors[name] = rng.integers(-128, 128, shapes[name]).astype(np.int8)
            # Some values of a standard normal distribution lie beyond the codes.
            scale = {f"{name}_scale": (at.kv_num_heads, dim) for name in ("key", "value")}
            self.tensors.update({name: rng.uniform(0.01, 0.03, s).astype(np.float32) for name, s in scale.items()})

    @property
    def rotary(self) -> Rotary | None:
        if not self.attributes.do_rotary:
            return None
        return rotary_tables(max(self.totals) + 2, self.rotary_dim or self.head_dim)

    @property
    def new(self) -> list[int]:
        """Tokens of each row that are not padding."""
        return [min(self.sequence, total) for total in self.totals] if self.counts is None else list(self.counts)

    def feeds(self) -> dict[str, np.ndarray]:
        given = dict(self.tensors)
        if not self.separate:
            given["query"] = np.concatenate([given["query"], given.pop("key"), given.pop("value")], axis=-1)
        given["seqlens_k"] = np.array(self.totals, np.int32) - np.int32(1)
        given["total_sequence_length"] = np.array(max(self.totals), np.int32)
        if self.rotary is not None:
            given |= {"cos_cache": self.rotary.cosine, "sin_cache": self.rotary.sine}
        if self.counts is not None:
            given["query_seqlens"] = np.array(self.counts, np.int32)
        return given

    def session(self, domain: str = OURS, threads: int = 1) -> ort.InferenceSession:
        return open_model(attention_model(self.feeds(), node_attributes(self.attributes), domain), threads)

    def run(self, domain: str = OURS, threads: int = 1) -> Attended:
        return Attended(*self.session(domain, threads).run(None, self.feeds()))

    def run_in_place(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The output, and the caches that were both past and present."""
        session = self.session(threads=2)
        binding = session.io_binding()
        values = {name: ort.OrtValue.ortvalue_from_numpy(array.copy()) for name, array in self.feeds().items()}
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_output("output")
        for name in ("key", "value"):
            binding.bind_ortvalue_output(f"present_{name}", values[f"past_{name}"])
        session.run_with_iobinding(binding)
        caches = {name: values[f"past_{name}"].numpy().copy() for name in ("key", "value")}
        return binding.get_outputs()[0].numpy().copy(), caches

    def expected(self) -> Attended:
        given, counts = self.tensors, self.counts
        return group_query_attention(
            given["query"],
            given["key"],
            given["value"],
            (given["past_key"], given["past_value"]),
            np.array(self.totals, np.int32) - np.int32(1),
            max(self.totals),
            self.attributes,
            self.rotary,
            None if counts is None else np.array(counts, np.int32),
            CacheScales(given["key_scale"], given["value_scale"]) if self.int8 else None,
        )
