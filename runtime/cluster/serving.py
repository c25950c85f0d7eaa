"""The server on a Ray cluster: replicas of it behind the proxy of Ray Serve."""

from __future__ import annotations

import logging
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig, HTTPOptions, ProxyLocation
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus, LoggingConfig

from bitnet_onnx.errors import BitnetOnnxError, InputError
from bitnet_onnx.runtime.cluster.metrics import ReplicaMetrics, new_board
from bitnet_onnx.runtime.cluster.placement import Placement, Share
from bitnet_onnx.runtime.cluster.session import Cluster, first_line
from bitnet_onnx.runtime.engine.engine import EngineSettings
from bitnet_onnx.runtime.server.auth import ApiKeys
from bitnet_onnx.runtime.server.run import Listening, open_app, warn_if_open
from bitnet_onnx.runtime.server.settings import ServerSettings

logger = logging.getLogger(__name__)

_APPLICATION = "bitnet-onnx"
_POLL_SECONDS = 0.2
_WATCH_SECONDS = 2.0
_HEALTH_SECONDS = 2.0
#: Requests beside those that the engine takes, so that it is the engine who refuses the next, and /health answers.
_REQUESTS_BESIDE = 64
#: A replica that could not open its package or engine twice will not at the third time.
_START_ATTEMPTS = 2
_OWN_ERROR = re.compile(r"^bitnet_onnx\.[\w.]+: (.{1,500})", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Serving:
    """How every replica serves.

    Attributes:
        settings: of the server.
        keys: that open it; their hashes go to the replicas.
        engine: settings of each engine.
    """

    settings: ServerSettings
    keys: ApiKeys
    engine: EngineSettings


class _Replica:
    """One server without a socket: Ray Serve hands it the requests."""

    def __init__(self, package: str, share: Share, served: Serving, board: Any) -> None:
        replica = serve.get_replica_context().replica_id.unique_id
        self._opened = open_app(
            Path(package),
            served.settings,
            keys=served.keys,
            engine_settings=served.engine,
            memory_bytes=share.memory_bytes,
            threads=share.threads,
            make_metrics=partial(ReplicaMetrics, board=board, replica=replica),
        )
        self._opened.engine.start()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._opened.app

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces the replica when this raises."""
        if not self._opened.engine.healthy:
            raise BitnetOnnxError("the engine has failed")

    def __del__(self) -> None:
        if hasattr(self, "_opened"):
            self._opened.close()


def serve_on_ray(
    placement: Placement,
    served: Serving,
    listening: Listening,
    started: Callable[[str], None],
) -> None:
    """Serves until SIGINT or SIGTERM; running answers then get `listening.drain_seconds`.

    On a cluster that was joined, Ray Serve must not run yet: its addresses are one for all applications.

    Args:
        placement: of the replicas; Ray Serve chooses between the least and the most by the running requests.
        served: how.
        listening: where: on every node with a replica, or on this machine alone if it is 127.0.0.1.
        started: told the address once it answers.

    Raises:
        BitnetOnnxError: the address is taken, or a replica does not start.
    """
    if not placement.cluster.is_own:
        _check_cluster(placement.cluster, listening)
    placement.check_room(placement.least)
    with listening.bind() as listener:
        host, port = listener.getsockname()[:2]
    warn_if_open(listening, served.keys)
    with _stopping() as stop:
        try:
            with _errors_of_ray():
                board = new_board()
                _deploy(placement, served, listening, host, port, board)
                _wait_until_running(stop)
            if not stop.is_set():
                started(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
            while not stop.wait(_WATCH_SECONDS):
                placement.cluster.check()
            with _errors_of_ray():
                _drain(listening.drain_seconds, stop)
        finally:
            _end(placement.cluster)


def _check_cluster(cluster: Cluster, listening: Listening) -> None:
    status = serve.status()
    if status.applications or status.proxies:
        running = ", ".join(sorted(status.applications)) or "none"
        raise InputError(
            f"Ray Serve runs already on this cluster (applications: {running[:200]}): end it with `serve shutdown`"
        )
    if listening.is_local and not cluster.is_head:
        raise InputError(
            f"{listening.host} would be that of the cluster's head, which is another machine: run this there, or give "
            f"--host 0.0.0.0"
        )


def _deploy(placement: Placement, served: Serving, listening: Listening, host: str, port: int, board: Any) -> None:
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    serve.start(
        proxy_location=ProxyLocation.HeadOnly if listening.is_local else ProxyLocation.EveryNode,
        http_options=HTTPOptions(host=host, port=port),
        logging_config=quiet,
    )
    fixed = placement.least == placement.most
    scaling = AutoscalingConfig(
        min_replicas=placement.least, max_replicas=placement.most, target_ongoing_requests=served.engine.max_batch
    )
    deployment = serve.deployment(
        serve.ingress()(_Replica),
        name="server",
        num_replicas=placement.least if fixed else None,
        autoscaling_config=None if fixed else scaling,
        max_ongoing_requests=served.engine.max_batch + served.engine.max_queue + _REQUESTS_BESIDE,
        ray_actor_options={"num_cpus": placement.share.cpus},
        graceful_shutdown_timeout_s=listening.drain_seconds,
        graceful_shutdown_wait_loop_s=_POLL_SECONDS,
        health_check_period_s=_HEALTH_SECONDS,
        max_constructor_retry_count=_START_ATTEMPTS,
        logging_config=quiet,
    )
    serve.run_many(
        [
            serve.RunTarget(
                deployment.bind(str(placement.package), placement.share, served, board),
                name=_APPLICATION,
                route_prefix="/",
            )
        ],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )


def _wait_until_running(stop: threading.Event) -> None:
    while not stop.wait(_POLL_SECONDS):
        application = serve.status().applications.get(_APPLICATION)
        if application is None or application.status is ApplicationStatus.DEPLOYING:
            continue
        if application.status is ApplicationStatus.RUNNING:
            return
        messages = [application.message, *(deployment.message for deployment in application.deployments.values())]
        raise BitnetOnnxError(f"the replicas do not start: {_reason(messages)}")


def _reason(messages: Iterable[str]) -> str:
    """The error of ours in the tracebacks that Ray Serve quotes, or the beginning of what it says."""
    text = "\n".join(messages)
    own = _OWN_ERROR.findall(text)
    return own[-1] if own else " ".join(text.split())[:300]


def _drain(seconds: float, stop: threading.Event) -> None:
    """Waits until the replicas have answered what they were answering, or a second signal."""
    serve.delete(_APPLICATION, _blocking=False)
    ends = time.monotonic() + seconds
    stop.clear()
    while _APPLICATION in serve.status().applications and not stop.wait(_POLL_SECONDS):
        if time.monotonic() > ends:
            logger.warning("answers still ran after %g s and are cut off", seconds)
            return


def _end(cluster: Cluster) -> None:
    try:
        cluster.check()
    except BitnetOnnxError:
        return  # Serve would be waited for in vain
    with _errors_of_ray():
        serve.shutdown()


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set."""
    stop = threading.Event()

    def ask(number: int, _: FrameType | None) -> None:
        logger.info("signal %s: ending", signal.Signals(number).name)
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _errors_of_ray() -> Iterator[None]:
    try:
        yield
    except (RayError, RayServeException, RuntimeError, ValueError) as error:
        raise BitnetOnnxError(f"Ray Serve: {first_line(error)}") from error
