"""`bitnet-onnx infer --batch`: a file of prompts through the batching engine."""

from __future__ import annotations

from pathlib import Path

from bitnet_onnx.cli._console import error_console
from bitnet_onnx.package_format import MANIFEST
from bitnet_onnx.runtime import PackageInfo, SamplingParameters
from bitnet_onnx.runtime.engine.engine import Engine, EngineSettings
from bitnet_onnx.runtime.kv_scales import KvType
from bitnet_onnx.runtime.memory import HybridMemoryPool, default_budget, parse_bytes
from bitnet_onnx.runtime.offline import write_answers
from bitnet_onnx.runtime.prompts import PromptEncoder


def answer_file(
    package: Path,
    source: Path,
    out: Path,
    parameters: SamplingParameters,
    *,
    max_batch: int,
    memory: str | None,
    threads: int | None,
    kv: KvType,
) -> None:
    """Answers the prompts of `source` into `out`, and tells on stderr how many.

    Raises:
        InputError: an option is wrong, a file cannot be used, or `out` holds other answers.
        BitnetOnnxError: the engine failed; what was answered is kept.
    """
    settings = EngineSettings(max_batch=max_batch)
    pool = HybridMemoryPool(default_budget() if memory is None else parse_bytes(memory))
    prompts = PromptEncoder(PackageInfo.open(package))
    with Engine.open(package, settings, memory=pool, threads=threads, prompts=prompts, kv=kv) as engine:
        # Answers with another cache are others.
        salt = (package / MANIFEST).read_bytes() + (b"" if kv == "float32" else kv.encode())
        report = write_answers(engine, prompts, source, out, parameters, salt=salt)
    error_console().print(
        f"{report.answered} lines answered, {report.failed} of them with an error, {report.kept} kept from before",
        highlight=False,
    )
