"""`bitnet-onnx infer --batch`: a file of prompts through the batching engine, here or on a Ray cluster."""

from __future__ import annotations

from pathlib import Path

from bitnet_onnx.cli._console import error_console
from bitnet_onnx.cli._ray import OnRay
from bitnet_onnx.runtime import PackageInfo, SamplingParameters
from bitnet_onnx.runtime.engine.engine import Engine, EngineSettings
from bitnet_onnx.runtime.memory import HybridMemoryPool, default_budget, parse_bytes
from bitnet_onnx.runtime.offline import OfflineReport, package_salt, write_answers
from bitnet_onnx.runtime.prompts import PromptEncoder


def answer_file(
    package: Path,
    source: Path,
    out: Path,
    parameters: SamplingParameters,
    *,
    settings: EngineSettings,
    memory: str | None,
    threads: int | None,
    on_ray: OnRay | None,
) -> None:
    """Answers the prompts of `source` into `out`, and tells on stderr how many.

    Raises:
        InputError: an option is wrong, a file cannot be used, or `out` holds other answers.
        BitnetOnnxError: the engine failed; what was answered is kept.
    """
    memory_bytes = None if memory is None else parse_bytes(memory)
    if on_ray is None:
        report = _answer_here(package, source, out, parameters, settings, memory_bytes, threads)
    else:
        from bitnet_onnx.runtime.cluster.batch import write_answers_on_ray
        from bitnet_onnx.runtime.cluster.placement import placed

        with placed(
            package.absolute(), on_ray.address, on_ray.replicas, threads=threads, memory_bytes=memory_bytes
        ) as placement:
            report = write_answers_on_ray(placement, source, out, parameters, settings)
    error_console().print(
        f"{report.answered} lines answered, {report.failed} of them with an error, {report.kept} kept from before",
        highlight=False,
    )


def _answer_here(
    package: Path,
    source: Path,
    out: Path,
    parameters: SamplingParameters,
    settings: EngineSettings,
    memory_bytes: int | None,
    threads: int | None,
) -> OfflineReport:
    pool = HybridMemoryPool(default_budget() if memory_bytes is None else memory_bytes)
    prompts = PromptEncoder(PackageInfo.open(package))
    with Engine.open(package, settings, memory=pool, threads=threads, prompts=prompts) as engine:
        return write_answers(engine, prompts, source, out, parameters, salt=package_salt(package, settings))
