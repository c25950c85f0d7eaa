"""What a package directory is called inside: shared by the converter that writes it and the runtime that reads it."""

from __future__ import annotations

from typing import Final

#: Version of the directory's layout and manifest, and of the layout of packed weights; docs/versioning.md says what
#: changes it. Packages from the oldest to this one are read.
FORMAT_VERSION: Final = 2
OLDEST_FORMAT_VERSION: Final = 2
#: Domain and version of our operators; custom_ops/include/bitnet_ops.h.in has the same numbers for the library.
OPERATOR_DOMAIN: Final = "bitnet"
OPERATOR_VERSION: Final = 1
OLDEST_OPERATOR_VERSION: Final = 1

#: The file that makes a directory a package of ours.
MANIFEST: Final = "bitnet_onnx.json"
MODEL: Final = "model.onnx"
MODEL_DATA: Final = "model.onnx.data"
#: The graph of our own runtime over the same data, with one more input, `LOGITS_START`.
ENGINE: Final = "engine.onnx"
POLICY: Final = "policy.toml"
SCALING: Final = "scaling.safetensors"
LOGITS_START: Final = "logits_start"
#: Scales of int8 keys and values: what our own runtime would otherwise measure when it opens the package.
KV_SCALES: Final = "kv_scales.safetensors"
#: A package of Core ML, which is another thing.
COREML_SUFFIX: Final = ".mlpackage"
CONFIG: Final = "config.json"
GENERATION_CONFIG: Final = "generation_config.json"
GENAI_CONFIG: Final = "genai_config.json"
TOKENIZER: Final = "tokenizer.json"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
CHAT_TEMPLATE: Final = "chat_template.jinja"
