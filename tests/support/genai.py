"""Greedy generation by onnxruntime-genai, which has no operator library here."""

from __future__ import annotations

from pathlib import Path

import onnxruntime_genai as og


def genai_tokens(package: Path, prompt: list[int], count: int) -> list[int]:
    """The new ids, at most `count`."""
    model = og.Model(str(package))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + count, do_sample=False)
    generator = og.Generator(model, parameters)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)][len(prompt) :]
