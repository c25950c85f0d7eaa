"""`bitnet-onnx serve`."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bitnet_onnx.cli._console import printable, size
from bitnet_onnx.cli._package import package_path
from bitnet_onnx.cli._ray import OnRay, on_ray, ray_options
from bitnet_onnx.cli._running import activations_option, kv_option, speculate_option
from bitnet_onnx.errors import UnsupportedError
from bitnet_onnx.runtime.kv_scales import KvType

if TYPE_CHECKING:
    from bitnet_onnx.runtime.engine.engine import EngineSettings
    from bitnet_onnx.runtime.server.auth import ApiKeys
    from bitnet_onnx.runtime.server.run import Listening, Running

#: Modules of the extra `serve`.
_NEEDED = ("fastapi", "uvicorn", "prometheus_client", "pydantic", "llguidance")


@click.command()
@click.argument("package", type=package_path)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind; 0.0.0.0: all of this machine.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free port.")
@click.option("--model-name", metavar="NAME", help="What clients call the model.  [default: the directory's name]")
@click.option("--api-key-file", type=click.Path(path_type=Path), help="Keys, one a line; also BITNET_ONNX_API_KEYS.")
@click.option("--memory", metavar="SIZE", help="For answers, such as 4GiB.  [default: a share of the machine's]")
@click.option("--max-batch", type=int, default=16, show_default=True, help="Most answers generated at a time.")
@click.option("--max-queue", type=int, default=256, show_default=True, help="Most requests that wait; then 429.")
@click.option("--prefill-chunk", type=int, default=256, show_default=True, help="Tokens of a prompt read at a time.")
@speculate_option
@kv_option
@click.option("--threads", type=click.IntRange(min=1), help="Threads of one operator.  [default: physical cores]")
@activations_option
@click.option(
    "--drain",
    type=click.FloatRange(0, 3600),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="What running answers get after Ctrl-C or SIGTERM.",
)
@click.option("--watch", is_flag=True, help="Draw speed, queue, cache and memory on the terminal while it serves.")
@ray_options("With --ray: servers behind one address; as 1:4, by the load.  [default: one on each node]")
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
    speculate: int,
    kv: KvType,
    threads: int | None,
    activation_bits: int | None,
    drain: float,
    watch: bool,
    use_ray: bool,
    ray_address: str | None,
    replicas: str | None,
) -> None:
    """Serve PACKAGE to OpenAI clients, with a chat page at `/`."""
    check_extra("serve")
    from bitnet_onnx.runtime.engine.engine import EngineSettings
    from bitnet_onnx.runtime.memory import parse_bytes
    from bitnet_onnx.runtime.server.auth import read_keys
    from bitnet_onnx.runtime.server.run import Listening, run_server

    ray = on_ray(use_ray, ray_address, replicas)
    listening = Listening(host, port, drain)
    keys = read_keys(api_key_file)
    settings = EngineSettings(
        max_batch=max_batch,
        max_queue=max_queue,
        prefill_chunk=prefill_chunk,
        speculate=speculate,
        kv=kv,
        activation_bits=activation_bits,
    )
    memory_bytes = None if memory is None else parse_bytes(memory)
    if ray is not None:
        _serve_on_ray(package, listening, keys, model_name, settings, memory_bytes, threads, ray)
        return
    _adopt_server_log()
    if watch:
        from bitnet_onnx.cli._watch import check_terminal

        check_terminal("--watch")
    run_server(
        package,
        listening,
        keys=keys,
        model_name=model_name,
        engine_settings=settings,
        memory_bytes=memory_bytes,
        threads=threads,
        started=lambda address: click.echo(f"Serving {printable(str(package))} at {address}"),
        watching=partial(_watching, drain) if watch else lambda _: nullcontext(),
    )


def check_extra(command: str) -> None:
    """Refuses a command that needs the extra `serve` where that is not installed.

    Raises:
        UnsupportedError: so it is.
    """
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise UnsupportedError(
            f"{command} needs {missing[0]}, which is not installed: pip install 'bitnet-onnx[serve]'"
        )


@contextmanager
def _watching(drain: float, running: Running) -> Iterator[None]:
    from bitnet_onnx.cli._watch import drawing
    from bitnet_onnx.cli._watch_view import Watched

    watched = Watched(running.address, f"Ctrl-C ends the server, after {drain:g} s at most; again: at once")
    with drawing(watched, running.snapshot, running.ending):
        yield


def _serve_on_ray(
    package: Path,
    listening: Listening,
    keys: ApiKeys,
    model_name: str | None,
    settings: EngineSettings,
    memory_bytes: int | None,
    threads: int | None,
    ray: OnRay,
) -> None:
    from bitnet_onnx.runtime.cluster.placement import placed
    from bitnet_onnx.runtime.cluster.serving import Serving, serve_on_ray
    from bitnet_onnx.runtime.server.run import server_settings

    served = Serving(server_settings(package, model_name, listening), keys, settings)
    with placed(package.absolute(), ray.address, ray.replicas, threads=threads, memory_bytes=memory_bytes) as placement:

        def started(address: str) -> None:
            share = placement.share
            many = f"{placement.least} replica{'s' if placement.least > 1 else ''}"
            if placement.least < placement.most:
                many = f"{placement.least} to {placement.most} replicas"
            cores = "its node's cores"
            if share.threads is not None:
                cores = f"{share.threads} thread{'s' if share.threads > 1 else ''}"
            click.echo(f"Serving {printable(str(package))} at {address}")
            click.echo(f"{many}, each with {cores} and {size(share.memory_bytes)} for answers")

        serve_on_ray(placement, served, listening, started)


def _adopt_server_log() -> None:
    """What uvicorn logs goes where our own does; its warnings are about what strangers send."""
    ours, uvicorn = logging.getLogger("bitnet_onnx"), logging.getLogger("uvicorn")
    uvicorn.handlers = ours.handlers
    uvicorn.setLevel(max(ours.level, logging.ERROR) if ours.level > logging.DEBUG else logging.INFO)
    uvicorn.propagate = False
