"""Logits of a package at every position, whole or token by token, on plain onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort


class PackageLogits:
    def __init__(self, package: Path, library: Path | None = None) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 2
        if library is not None:
            options.register_custom_ops_library(str(library))
        self.session = ort.InferenceSession(package / "model.onnx", options, providers=["CPUExecutionProvider"])

    def __call__(self, ids: np.ndarray, chunk: int | None = None) -> np.ndarray:
        """float32 `[len(ids), vocab]`; `chunk` tokens a call, all at once without it."""
        past = {
            value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
            for value in self.session.get_inputs()
            if value.name.startswith("past_key_values")
        }
        parts = []
        step = chunk or len(ids)
        for start in range(0, len(ids), step):
            part = ids[start : start + step].astype(np.int64)[None]
            mask = np.ones((1, start + part.shape[1]), np.int64)
            outputs = self.session.run(None, {"input_ids": part, "attention_mask": mask, **past})
            parts.append(outputs[0][0])
            past = dict(zip(past, outputs[1:], strict=True))
        return np.concatenate(parts)
