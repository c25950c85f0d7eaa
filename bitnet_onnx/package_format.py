"""What a package directory is called inside: shared by the converter that writes it and the runtime that reads it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

from bitnet_onnx.errors import PackageError

#: Version of the directory's layout and manifest, and of the layout of packed weights; docs/versioning.md says what
#: changes it. Packages from the oldest to this one are read.
FORMAT_VERSION: Final = 2
OLDEST_FORMAT_VERSION: Final = 2
#: Domain and version of our operators; custom_ops/include/bitnet_ops.h.in has the same numbers for the library.
OPERATOR_DOMAIN: Final = "bitnet"
OPERATOR_VERSION: Final = 1
OLDEST_OPERATOR_VERSION: Final = 1


class Operators(enum.StrEnum):
    """What a package's graph is written in; the manifest's `operator.form`, where nothing stands for `bitnet`."""

    #: Ours, with function bodies for runtimes without the operator library.
    BITNET = "bitnet"
    #: Those of ONNX Runtime.
    STOCK = "stock"
    #: Those of the ONNX standard.
    STANDARD = "standard"

    @classmethod
    def of(cls, manifest: Mapping[str, object], path: Path) -> Self:
        """The one that a manifest names.

        Raises:
            PackageError: it is unknown.
        """
        operator = manifest.get("operator")
        form = operator.get("form", cls.BITNET) if isinstance(operator, dict) else cls.BITNET
        if form not in list(cls):
            raise PackageError(
                f"{path}: operator.form is {form!r:.40}, this version of bitnet-onnx knows {', '.join(cls)}; "
                f"update bitnet-onnx"
            )
        return cls(form)


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
