"""A two-layer random decoder as a complete package, built with the onnx helper alone.

The runtime is tested against this instead of a converted checkpoint, so that its tests say nothing about
the converters and run in milliseconds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from bitnet_onnx.package_format import FORMAT_VERSION

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class TinyShape:
    """Sizes of the decoder; the vocabulary is 256 bytes and the special tokens."""

    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    context_length: int = 96

    @property
    def hidden(self) -> int:
        return self.heads * self.head_dim


def byte_tokenizer() -> Tokenizer:
    """Every byte a token, no merges: characters of several bytes always arrive in pieces."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    return tokenizer


def _initializers(shape: TinyShape, vocab: int, seed: int) -> dict[str, npt.NDArray[np.float32]]:
    rng = np.random.default_rng(seed)

    def normal(*dims: int, scale: float) -> npt.NDArray[np.float32]:
        return (rng.standard_normal(dims) * scale).astype(np.float32)

    hidden, kv = shape.hidden, shape.kv_heads * shape.head_dim
    ones = np.ones(hidden, np.float32)
    weights = {"ones": ones, "embed": normal(vocab, hidden, scale=1.0), "head": normal(hidden, vocab, scale=0.3)}
    for layer in range(shape.layers):
        weights[f"q.{layer}"] = normal(hidden, hidden, scale=0.3)
        weights[f"k.{layer}"] = normal(hidden, kv, scale=0.3)
        weights[f"v.{layer}"] = normal(hidden, kv, scale=0.3)
        weights[f"o.{layer}"] = normal(hidden, hidden, scale=0.3)
    angles = np.outer(
        np.arange(shape.context_length), 10000.0 ** -(np.arange(shape.head_dim // 2) / (shape.head_dim // 2))
    )
    weights["cos"] = np.cos(angles).astype(np.float32)
    weights["sin"] = np.sin(angles).astype(np.float32)
    return weights


def build_model(shape: TinyShape, vocab: int, seed: int = 0) -> onnx.ModelProto:
    """The graph of the package contract: rotary and cache inside GroupQueryAttention."""
    nodes = [
        helper.make_node("ReduceSum", ["attention_mask", "axis_one"], ["lengths"], keepdims=0),
        helper.make_node("Sub", ["lengths", "one"], ["lengths_minus_one"]),
        helper.make_node("Cast", ["lengths_minus_one"], ["seqlens_k"], to=TensorProto.INT32),
        helper.make_node("Shape", ["attention_mask"], ["total_64"], start=1, end=2),
        helper.make_node("Squeeze", ["total_64"], ["total_scalar"]),
        helper.make_node("Cast", ["total_scalar"], ["total"], to=TensorProto.INT32),
        helper.make_node("Gather", ["embed", "input_ids"], ["hidden.0"]),
    ]
    cache = ("batch", shape.kv_heads, "past", shape.head_dim)
    present = ("batch", shape.kv_heads, "total", shape.head_dim)
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ("batch", "sequence")),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ("batch", "total")),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("batch", "sequence", vocab))]
    for layer in range(shape.layers):
        source = f"normed.{layer}"
        nodes.append(helper.make_node("LayerNormalization", [f"hidden.{layer}", "ones"], [source]))
        nodes += [helper.make_node("MatMul", [source, f"{name}.{layer}"], [f"{name}_out.{layer}"]) for name in "qkv"]
        for part in ("key", "value"):
            past_name, present_name = f"past_key_values.{layer}.{part}", f"present.{layer}.{part}"
            inputs.append(helper.make_tensor_value_info(past_name, TensorProto.FLOAT, cache))
            outputs.append(helper.make_tensor_value_info(present_name, TensorProto.FLOAT, present))
        nodes += [
            helper.make_node(
                "GroupQueryAttention",
                [
                    *(f"{name}_out.{layer}" for name in "qkv"),
                    f"past_key_values.{layer}.key",
                    f"past_key_values.{layer}.value",
                    "seqlens_k",
                    "total",
                    "cos",
                    "sin",
                ],
                [f"attention.{layer}", f"present.{layer}.key", f"present.{layer}.value"],
                domain="com.microsoft",
                num_heads=shape.heads,
                kv_num_heads=shape.kv_heads,
                do_rotary=1,
            ),
            helper.make_node("MatMul", [f"attention.{layer}", f"o.{layer}"], [f"o_out.{layer}"]),
            helper.make_node("Add", [f"hidden.{layer}", f"o_out.{layer}"], [f"hidden.{layer + 1}"]),
        ]
    nodes.append(helper.make_node("LayerNormalization", [f"hidden.{shape.layers}", "ones"], ["last"]))
    nodes.append(helper.make_node("MatMul", ["last", "head"], ["logits"]))
    initializers = [numpy_helper.from_array(value, name) for name, value in _initializers(shape, vocab, seed).items()]
    initializers.append(numpy_helper.from_array(np.array([1], np.int64), "axis_one"))
    initializers.append(numpy_helper.from_array(np.array(1, np.int64), "one"))
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def manifest(shape: TinyShape, vocab: int) -> dict[str, Any]:
    """What the package emitter writes into bitnet_onnx.json, as far as the runtime reads it."""
    return {
        "format_version": FORMAT_VERSION,
        "tool_version": "0.1.0",
        "source": {"kind": "test"},
        "architecture": {
            "num_hidden_layers": shape.layers,
            "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.head_dim,
            "vocab_size": vocab,
            "context_length": shape.context_length,
        },
        "operator": {"domain": "bitnet", "version": 1, "fallback": "fast"},
        "layers": [],
        "summary": {},
    }


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def edit_json(path: Path, **changes: object) -> None:
    """Replaces top-level fields of a JSON file."""
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), **changes})


def write_package(
    directory: Path, shape: TinyShape | None = None, *, tokenizer: Tokenizer | None = None, seed: int = 0
) -> Path:
    """Writes the whole package into an existing directory and returns that directory."""
    shape = TinyShape() if shape is None else shape
    tokenizer = byte_tokenizer() if tokenizer is None else tokenizer
    vocab = tokenizer.get_vocab_size(with_added_tokens=True)
    onnx.save_model(
        build_model(shape, vocab, seed),
        directory / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=64,
    )
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)  # as conversion writes it
    write_json(directory / "config.json", {"model_type": "llama", "vocab_size": vocab})
    write_json(directory / "generation_config.json", {"eos_token_id": [tokenizer.token_to_id("<|im_end|>")]})
    write_json(
        directory / "tokenizer_config.json",
        {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>", "chat_template": CHAT_TEMPLATE},
    )
    write_json(directory / "genai_config.json", {})
    write_json(directory / "bitnet_onnx.json", manifest(shape, vocab))
    return directory
