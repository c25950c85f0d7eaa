"""A server process: the package opened, the engine started, the socket bound, and the way down."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Protocol

import uvicorn
from fastapi import FastAPI

from bitnet_onnx.errors import BitnetOnnxError, InputError
from bitnet_onnx.runtime.engine.constraints import ConstraintFactory
from bitnet_onnx.runtime.engine.engine import Engine, EngineSettings
from bitnet_onnx.runtime.engine.structured_output import plan_output
from bitnet_onnx.runtime.memory import HybridMemoryPool, default_budget
from bitnet_onnx.runtime.package import PackageInfo
from bitnet_onnx.runtime.prompts import PromptEncoder
from bitnet_onnx.runtime.server.app import create_app
from bitnet_onnx.runtime.server.auth import ApiKeys
from bitnet_onnx.runtime.server.prometheus import ServerMetrics
from bitnet_onnx.runtime.server.prompts import RequestPrompts
from bitnet_onnx.runtime.server.settings import ServerSettings
from bitnet_onnx.runtime.server.snapshot import ServerSnapshot, read_snapshot
from bitnet_onnx.runtime.server.structured import PlanAnswer

logger = logging.getLogger(__name__)

_BACKLOG = 1024
#: After the drain the answers are cut off, which takes a step of the engine; then connections are.
_CUT_OFF_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Listening:
    """Where and how long.

    Args:
        host: address or name to bind; 127.0.0.1 is reached from this machine only.
        port: 0: any free one.
        drain_seconds: what running answers get to finish after SIGINT or SIGTERM.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    drain_seconds: float = 30.0

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def bind(self) -> socket.socket:
        """A listening socket.

        Raises:
            InputError: the address is unknown, taken or not allowed.
        """
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
            )[0]
        except (OSError, UnicodeError) as error:
            raise self._unusable(error) from None
        # The protocol is named: asyncio switches Nagle's algorithm off for what it knows to be TCP, and with it on each
        # piece of an answer waits 40 ms for the acknowledgement of the last.
        listener = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except (OSError, OverflowError) as error:
            listener.close()
            raise self._unusable(error) from None
        return listener

    def _unusable(self, error: Exception) -> InputError:
        reason = getattr(error, "strerror", None) or error
        return InputError(f"{self.host}:{self.port}: cannot listen there: {reason}")


class Closable(Protocol):
    """What is closed when the drain is over."""

    def close(self) -> None:
        """Ends all answers."""
        ...


class Server(uvicorn.Server):
    """Serves until a signal; then answers what is running, for a while, and ends with status 0.

    Args:
        app: the application.
        engine: closed when the drain is over.
        drain_seconds: of the drain; a second signal ends it.
    """

    def __init__(self, app: FastAPI, engine: Closable, drain_seconds: float) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            lifespan="on",
            timeout_graceful_shutdown=int(drain_seconds) + _CUT_OFF_SECONDS,
        )
        super().__init__(config)
        self._engine = engine
        self._drain_seconds = drain_seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  # by protocol
        """Begins the way down; uvicorn's own would raise the signal again at its end."""
        logger.info("signal %s: ending", signal.Signals(sig).name)
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Waits for running answers, and cuts them off when the drain is over."""
        drain = asyncio.create_task(self._cut_off())
        try:
            await super().shutdown(sockets)
        finally:
            drain.cancel()
            await asyncio.gather(drain, return_exceptions=True)

    async def _cut_off(self) -> None:
        await asyncio.sleep(self._drain_seconds)
        logger.warning("answers still ran after %g s and are cut off", self._drain_seconds)
        await asyncio.to_thread(self._engine.close)


@dataclass(frozen=True, slots=True)
class Running:
    """A server that listens, for whoever watches it from within its process; any thread may ask.

    Attributes:
        address: where.
        snapshot: what it counts.
        ending: whether a signal has begun its way down.
    """

    address: str
    snapshot: Callable[[], ServerSnapshot]
    ending: Callable[[], bool]


def run_server(
    package: Path,
    listening: Listening,
    *,
    keys: ApiKeys,
    model_name: str | None = None,
    engine_settings: EngineSettings | None = None,
    memory_bytes: int | None = None,
    threads: int | None = None,
    started: Callable[[str], None],
    watching: Callable[[Running], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> None:
    """Serve a package until SIGINT or SIGTERM.

    Args:
        package: the package directory.
        listening: where.
        keys: that open it.
        model_name: what clients call it; None: the directory's name.
        engine_settings: of the batches.
        memory_bytes: the budget of all answers; None: a share of what the machine has.
        threads: of one operator.
        started: told the address once it is listening.
        watching: makes a context that lasts as long as it serves, the way down included.

    Raises:
        BitnetOnnxError: the package, a setting or the address is not usable.
    """
    settings = server_settings(package, model_name, listening)
    with listening.bind() as listener:
        opened = open_app(
            package, settings, keys=keys, engine_settings=engine_settings, memory_bytes=memory_bytes, threads=threads
        )
        warn_if_open(listening, keys)
        with closing(opened.prompts), opened.engine:
            server = Server(opened.app, opened.engine, listening.drain_seconds)
            address, metrics = _address(listener), opened.metrics
            started(address)
            with watching(Running(address, lambda: read_snapshot(metrics.families()), lambda: server.should_exit)):
                server.run([listener])


def server_settings(package: Path, model_name: str | None, listening: Listening) -> ServerSettings:
    """What follows for a server from its package and from where it listens.

    Raises:
        PackageError: the directory is not a usable package.
        InputError: the name is not usable.
    """
    name = model_name or PackageInfo.open(package).directory.resolve().name
    return ServerSettings(name, require_local_host=listening.is_local)


def warn_if_open(listening: Listening, keys: ApiKeys) -> None:
    """Says that others may use a server without keys."""
    if not listening.is_local and not keys:
        logger.warning("no API keys: whoever reaches %s may use this server", listening.host)


@dataclass(frozen=True, slots=True)
class Opened:
    """A server without an address.

    Attributes:
        engine: to be started and closed by its owner.
        app: answers requests.
        metrics: what it counts.
        prompts: the text side, to be closed by its owner.
    """

    engine: Engine
    app: FastAPI
    metrics: ServerMetrics
    prompts: PromptEncoder

    def close(self) -> None:
        """Ends the engine and what renders chat templates."""
        self.engine.close()
        self.prompts.close()


def open_app(
    package: Path,
    settings: ServerSettings,
    *,
    keys: ApiKeys,
    engine_settings: EngineSettings | None = None,
    memory_bytes: int | None = None,
    threads: int | None = None,
    make_metrics: Callable[[Engine, str], ServerMetrics] = ServerMetrics,
) -> Opened:
    """A server of a package without an address; its engine is not yet started.

    Args:
        package: the package directory.
        settings: of the server.
        keys: that open it.
        engine_settings: of the batches.
        memory_bytes: the budget of all answers; None: a share of what the machine has.
        threads: of one operator.
        make_metrics: the registry of `/metrics`, of the engine and the model's name.

    Raises:
        BitnetOnnxError: the package or a setting is not usable.
    """
    encoder = PromptEncoder(PackageInfo.open(package))
    memory = HybridMemoryPool(default_budget() if memory_bytes is None else memory_bytes)
    plan_answer = make_plan_answer(encoder)
    engine = Engine.open(package, engine_settings or EngineSettings(), memory=memory, threads=threads, prompts=encoder)
    metrics = make_metrics(engine, settings.model_name)
    app = create_app(engine, RequestPrompts(encoder), settings, keys=keys, plan_answer=plan_answer, metrics=metrics)
    return Opened(engine, app, metrics, encoder)


def make_plan_answer(encoder: PromptEncoder) -> PlanAnswer | None:
    """What enforces forms of answers, or None for a tokenizer that it cannot follow."""
    package = encoder.package
    try:
        factory = ConstraintFactory(encoder.tokenizer, package.architecture.vocab_size, encoder.stop_ids)
    except BitnetOnnxError as error:
        logger.warning("response_format and tools will be refused: %s", error)
        return None
    return partial(plan_output, factory, package.chat_template)


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
