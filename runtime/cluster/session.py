"""A Ray cluster for the time of a `with` block: joined, or started on this machine."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.exceptions import RayError

from bitnet_onnx.errors import BitnetOnnxError, InputError

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 5.0
_END_SECONDS = 10.0
_LONGEST_DIRECTORY = 20
#: Prompts and answers pass through it, never weights or keys and values.
_OBJECT_STORE_BYTES = 256 << 20
_QUIET_LOGGERS = ("ray", "ray.data", "ray.serve")


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster that computes.

    Attributes:
        id: Ray's.
        address: its IP address.
        cpus: that Ray hands out there.
    """

    id: str
    address: str
    cpus: int


class Cluster:
    """The cluster that this process belongs to.

    Attributes:
        is_own: started by this process, which also ends it.
    """

    def __init__(self, is_own: bool) -> None:
        self.is_own = is_own

    @property
    def here(self) -> str:
        """Ray's id of this machine."""
        own: str = ray.get_runtime_context().get_node_id()
        return own

    @property
    def is_head(self) -> bool:
        """Whether this machine is the cluster's head."""
        return any(
            node["NodeID"] == self.here and "node:__internal_head__" in node["Resources"] for node in ray.nodes()
        )

    def check(self) -> None:
        """Makes sure that the cluster still has this machine.

        Raises:
            BitnetOnnxError: Ray's own process here has died, and nothing more is heard of the others.
        """
        try:
            alive = any(node["NodeID"] == self.here and node["Alive"] for node in ray.nodes())
        except (RayError, RuntimeError) as error:
            raise BitnetOnnxError(f"Ray has died: {first_line(error)}") from error
        if not alive:
            raise BitnetOnnxError("Ray has died on this machine")

    def nodes(self) -> list[Node]:
        """The living machines that have a CPU to hand out.

        Raises:
            InputError: there are none.
        """
        nodes = [
            Node(node["NodeID"], node["NodeManagerAddress"], int(node["Resources"].get("CPU", 0)))
            for node in ray.nodes()
            if node["Alive"]
        ]
        computing = [node for node in nodes if node.cpus >= 1]
        if not computing:
            raise InputError("no node of the Ray cluster has a CPU to hand out: start one with --num-cpus")
        return computing

    def free_cpus(self) -> float:
        """CPUs that nothing has reserved."""
        free: float = ray.available_resources().get("CPU", 0.0)
        return free


@contextmanager
def ray_cluster(address: str | None, *, cpus: int = 1) -> Iterator[Cluster]:
    """Joins the cluster at an address, or starts one on this machine, and leaves or ends it after the block.

    A cluster that is started here keeps its files in a directory that goes with it, has no dashboard, and is opened by
    a token that only processes of this user know.

    Args:
        address: `auto` for the one that runs on this machine, or HOST:PORT; None: start one.
        cpus: the least that a cluster started here hands out.

    Raises:
        InputError: the address is no such thing, or no cluster answers there.
        BitnetOnnxError: Ray does not start.
    """
    if address is not None:
        _check_address(address)
    verbose = logger.isEnabledFor(logging.DEBUG)
    for name in _QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.CRITICAL)
    common = {"log_to_driver": verbose, "logging_level": logging.INFO if verbose else logging.CRITICAL}
    files = _new_directory() if address is None else None
    try:
        with _environment(is_own=address is None):
            try:
                with _signals_kept(), _working_in(files or Path(Path.cwd().anchor)), _native_stderr_hidden():
                    if files is None:
                        ray.init(address, **common)
                    else:
                        ray.init(
                            "local",
                            num_cpus=max(cpus, os.cpu_count() or 1),
                            include_dashboard=False,
                            object_store_memory=_OBJECT_STORE_BYTES,
                            _temp_dir=str(files),
                            **common,
                        )
            except (RayError, RuntimeError, OSError, ValueError) as error:
                raise _not_there(address, error) from error
            yield Cluster(address is None)
    finally:
        ray.shutdown()
        if files is not None:
            _remove(files)


def first_line(error: BaseException) -> str:
    """What an error says, without what follows."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def _not_there(address: str | None, error: Exception) -> BitnetOnnxError:
    if address is None:
        return BitnetOnnxError(f"Ray does not start on this machine: {first_line(error)}")
    if address == "auto" and isinstance(error, ConnectionError):
        return InputError("--ray-address auto: no Ray cluster runs on this machine: `ray start` one, or give HOST:PORT")
    return InputError(f"--ray-address {address}: {first_line(error)}")


def _check_address(address: str) -> None:
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(f"--ray-address {address!r:.80} is neither auto nor HOST:PORT")
    try:
        # Ray itself would try for a minute.
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        raise InputError(f"--ray-address {address}: no Ray cluster answers there: {error.strerror or error}") from error


@contextmanager
def _environment(*, is_own: bool) -> Iterator[None]:
    """What Ray reads of the environment; a cluster of our own is opened by a token, which goes with it."""
    changes = {"RAY_BACKEND_LOG_LEVEL": os.environ.get("RAY_BACKEND_LOG_LEVEL", "fatal")}
    if is_own and "RAY_AUTH_TOKEN" not in os.environ and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        # Otherwise Ray would make one and leave it in the home directory.
        changes["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    before = {name: os.environ.get(name) for name in (*changes, "RAY_AUTH_MODE")}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray puts a handler of its own in the place of the command line's; it raises SystemExit."""
    before = signal.getsignal(signal.SIGTERM)

    def restore() -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)

    try:
        yield
    except SystemExit:
        restore()
        signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        restore()


@contextmanager
def _working_in(directory: Path) -> Iterator[None]:
    """Ray puts the current directory on the path of its workers, where any file named like a module would be run."""
    before = Path.cwd()
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def _native_stderr_hidden() -> Iterator[None]:
    """Ray's native part tells on stderr that it was asked to be silent; what goes wrong is in exceptions too."""
    sys.stderr.flush()
    before = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(nothing)
        os.close(before)


def _new_directory() -> Path:
    """For files and sockets, whose paths may have about a hundred characters, Ray's own sixty among them."""
    usual = tempfile.gettempdir()
    short = usual if len(usual) <= _LONGEST_DIRECTORY or os.name == "nt" else "/tmp"  # noqa: S108  # mkdtemp is safe
    return Path(tempfile.mkdtemp(prefix="bitnet-onnx-", dir=short))


def _remove(directory: Path) -> None:
    """Processes of Ray that are about to end may still write there."""
    ends = time.monotonic() + _END_SECONDS
    while directory.exists() and time.monotonic() < ends:
        shutil.rmtree(directory, ignore_errors=True)
        time.sleep(0.1)
