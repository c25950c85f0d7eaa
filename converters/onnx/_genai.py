"""`genai_config.json`: what onnxruntime-genai needs to open the same directory."""

from __future__ import annotations

from collections.abc import Mapping

from bitnet_onnx.converters.onnx._head_layout import head_size
from bitnet_onnx.decoder import DecoderSpec


def genai_config(spec: DecoderSpec, generation: Mapping[str, object], *, max_length: int) -> dict[str, object]:
    """The configuration of one decoder.

    Args:
        spec: what the decoder is.
        generation: Hugging Face generation settings with `bos_token_id`, `eos_token_id`, `pad_token_id`.
        max_length: positions that a session makes room for unless it asks for another number; the whole context
            would allocate a cache for all of it.
    """
    eos = generation.get("eos_token_id")
    first_eos = eos[0] if isinstance(eos, list) and eos else eos
    model: dict[str, object] = {
        # Family names of onnxruntime-genai choose nothing but the input names here.
        "type": "llama",
        "vocab_size": spec.vocab_size,
        "context_length": spec.context_length,
        "bos_token_id": _first(generation.get("bos_token_id"), first_eos, 0),
        "eos_token_id": eos if eos is not None else 0,
        "pad_token_id": _first(generation.get("pad_token_id"), first_eos, 0),
        "decoder": {
            "filename": "model.onnx",
            "head_size": head_size(spec),
            "hidden_size": spec.hidden_size,
            "num_attention_heads": spec.num_attention_heads,
            "num_key_value_heads": spec.num_key_value_heads,
            "num_hidden_layers": spec.num_hidden_layers,
            "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
            "inputs": {
                "input_ids": "input_ids",
                "attention_mask": "attention_mask",
                "past_key_names": "past_key_values.%d.key",
                "past_value_names": "past_key_values.%d.value",
            },
            "outputs": {
                "logits": "logits",
                "present_key_names": "present.%d.key",
                "present_value_names": "present.%d.value",
            },
        },
    }
    search = {
        "max_length": max_length,
        "do_sample": False,
        "num_beams": 1,
        "past_present_share_buffer": True,
    }
    return {"model": model, "search": search}


def _first(*values: object) -> object:
    return next((value for value in values if value is not None), None)
