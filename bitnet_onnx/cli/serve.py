"""`bitnet-onnx serve`."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import click

from bitnet_onnx.cli._console import printable
from bitnet_onnx.errors import UnsupportedError
from bitnet_onnx.runtime.kv_scales import KV_TYPES, KvType

#: Modules of the extra `serve`.
_NEEDED = ("fastapi", "uvicorn", "prometheus_client", "pydantic", "llguidance")


@click.command()
@click.argument("package", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind; 0.0.0.0: all of this machine.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free port.")
@click.option("--model-name", metavar="NAME", help="What clients call the model.  [default: the directory's name]")
@click.option("--api-key-file", type=click.Path(path_type=Path), help="Keys, one a line; also BITNET_ONNX_API_KEYS.")
@click.option("--memory", metavar="SIZE", help="For answers, such as 4GiB.  [default: a share of the machine's]")
@click.option("--max-batch", type=int, default=16, show_default=True, help="Most answers generated at a time.")
@click.option("--max-queue", type=int, default=256, show_default=True, help="Most requests that wait; then 429.")
@click.option("--prefill-chunk", type=int, default=256, show_default=True, help="Tokens of a prompt read at a time.")
@click.option(
    "--kv",
    type=click.Choice(KV_TYPES),
    default="float32",
    show_default=True,
    help="Keys and values; int8 takes a quarter of the memory.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads of one operator.  [default: physical cores]")
@click.option(
    "--drain",
    type=click.FloatRange(0, 3600),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="What running answers get after Ctrl-C or SIGTERM.",
)
def command(
    package: Path,
    host: str,
    port: int,
    model_name: str | None,
    api_key_file: Path | None,
    memory: str | None,
    max_batch: int,
    max_queue: int,
    prefill_chunk: int,
    kv: KvType,
    threads: int | None,
    drain: float,
) -> None:
    """Serve PACKAGE to OpenAI clients, with a chat page at `/`."""
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise UnsupportedError(f"serve needs {missing[0]}, which is not installed: pip install 'bitnet-onnx[serve]'")
    from bitnet_onnx.runtime.engine.engine import EngineSettings
    from bitnet_onnx.runtime.memory import parse_bytes
    from bitnet_onnx.runtime.server.auth import read_keys
    from bitnet_onnx.runtime.server.run import Listening, run_server

    _adopt_server_log()
    run_server(
        package,
        Listening(host, port, drain),
        keys=read_keys(api_key_file),
        model_name=model_name,
        engine_settings=EngineSettings(max_batch=max_batch, max_queue=max_queue, prefill_chunk=prefill_chunk),
        memory_bytes=None if memory is None else parse_bytes(memory),
        threads=threads,
        kv=kv,
        started=lambda address: click.echo(f"Serving {printable(str(package))} at {address}"),
    )


def _adopt_server_log() -> None:
    """What uvicorn logs goes where our own does; its warnings are about what strangers send."""
    ours, uvicorn = logging.getLogger("bitnet_onnx"), logging.getLogger("uvicorn")
    uvicorn.handlers = ours.handlers
    uvicorn.setLevel(max(ours.level, logging.ERROR) if ours.level > logging.DEBUG else logging.INFO)
    uvicorn.propagate = False
