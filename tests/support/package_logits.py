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

    def ragged(self, prompts: list[np.ndarray]) -> list[np.ndarray]:
        """Logits of prompts of different lengths in one batch: all but the last token at once, then that one."""
        lengths = np.array([len(ids) for ids in prompts])
        first = np.maximum(lengths - 1, 1)
        past = {
            value.name: np.zeros((len(prompts), value.shape[1], 0, value.shape[3]), np.float32)
            for value in self.session.get_inputs()
            if value.name.startswith("past_key_values")
        }
        width = int(first.max())
        ids = np.zeros((len(prompts), width), np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : first[row]] = prompt[: first[row]]
        outputs = self.session.run(None, {"input_ids": ids, "attention_mask": _mask(first, width), **past})
        parts = [[outputs[0][row, : first[row]]] for row in range(len(prompts))]
        past = dict(zip(past, outputs[1:], strict=True))
        last = np.array([[prompt[-1]] for prompt in prompts], np.int64)
        # A prompt of one token reads it a second time, one position further on; nobody looks at that.
        outputs = self.session.run(None, {"input_ids": last, "attention_mask": _mask(first + 1, width + 1), **past})
        for row, length in enumerate(lengths):
            if length > 1:
                parts[row].append(outputs[0][row])
        return [np.concatenate(rows) for rows in parts]


def _mask(lengths: np.ndarray, width: int) -> np.ndarray:
    return (np.arange(width) < lengths[:, None]).astype(np.int64)
