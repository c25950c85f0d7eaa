"""How replicas of an engine share the machines of a cluster, on each of which the package must be."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bitnet_onnx.errors import BitnetOnnxError, InputError, PackageError
from bitnet_onnx.package_format import MANIFEST
from bitnet_onnx.runtime.cluster.session import Cluster, Node, first_line, ray_cluster
from bitnet_onnx.runtime.memory import default_budget
from bitnet_onnx.runtime.package import PackageInfo

#: A worker starts within it on a busy machine.
_NODE_SECONDS = 120.0
_ROOM_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Share:
    """What each replica gets.

    Attributes:
        cpus: that Ray reserves for it.
        threads: of one operator; None: as many as its machine has physical cores.
        memory_bytes: the budget of its answers.
    """

    cpus: int
    threads: int | None
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class _NodeReport:
    """What a machine says of itself."""

    version: str
    manifest: str
    budget: int


@dataclass(frozen=True, slots=True)
class Placement:
    """Replicas of one package on a cluster.

    Attributes:
        cluster: this process belongs to it.
        package: absolute, on every node.
        least: replicas at any time.
        most: replicas under load.
        share: of each.
    """

    cluster: Cluster
    package: Path
    least: int
    most: int
    share: Share

    def check_room(self, replicas: int) -> None:
        """Waits for room a little, since Ray takes its time to clear up after others; by itself it would wait forever.

        Raises:
            InputError: other work has reserved too many CPUs.
        """
        ends = time.monotonic() + _ROOM_SECONDS
        while (free := self.cluster.free_cpus()) < replicas * self.share.cpus:
            if time.monotonic() > ends:
                raise InputError(
                    f"{replicas} replicas with {self.share.cpus} CPUs each, but the Ray cluster has {free:g} free: end "
                    f"other work on it, or give fewer --replicas"
                )
            time.sleep(0.5)


@contextmanager
def placed(
    package: Path,
    address: str | None,
    replicas: tuple[int, int] | None = None,
    *,
    threads: int | None = None,
    memory_bytes: int | None = None,
) -> Iterator[Placement]:
    """Joins or starts a cluster for the block, as `ray_cluster` does, and divides its machines among replicas.

    Args:
        package: absolute; opened on every node that computes.
        address: of the cluster to join; None: one is started.
        replicas: the least and the most; None: one on each node.
        threads: of one operator; None: a replica that has a node for itself takes its physical cores, others the CPUs
            of their share.
        memory_bytes: the budget of each replica; None: what one engine would take on its node, divided by the replicas
            that find room there.

    Raises:
        InputError: the package is not on a node, or is another one there; or there are too few CPUs.
        BitnetOnnxError: Ray does not start, or a node does not answer.
    """
    PackageInfo.open(package)
    with ray_cluster(address, cpus=1 if replicas is None else replicas[1]) as cluster:
        nodes = cluster.nodes()
        least, most = (len(nodes), len(nodes)) if replicas is None else replicas
        budgets = _check_package(nodes, package)
        share = _share(nodes, budgets, most, threads, memory_bytes)
        yield Placement(cluster, package, least, most, share)


def _share(
    nodes: Sequence[Node], budgets: Sequence[int], replicas: int, threads: int | None, memory_bytes: int | None
) -> Share:
    on_each = -(-replicas // len(nodes))
    fewest = min(node.cpus for node in nodes)
    if on_each > fewest:
        raise InputError(
            f"{replicas} replicas on {len(nodes)} nodes, but one of them has {fewest} CPUs; give fewer --replicas"
        )
    cpus = fewest // on_each
    fit = [node.cpus // cpus for node in nodes]
    if threads is None and max(fit) > 1:
        threads = cpus
    if memory_bytes is None:
        memory_bytes = min(budget // count for budget, count in zip(budgets, fit, strict=True))
    return Share(cpus, threads, memory_bytes)


def _check_package(nodes: Sequence[Node], package: Path) -> list[int]:
    """The memory budget of each node, where the same package opens on all."""
    own = _report(str(package))
    ask = ray.remote(num_cpus=0, max_retries=1)(_report)
    asked = [
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(str(package))
        for node in nodes
    ]
    budgets = []
    for node, reference in zip(nodes, asked, strict=True):
        try:
            report = ray.get(reference, timeout=_NODE_SECONDS)
        except GetTimeoutError:
            raise BitnetOnnxError(f"node {node.address}: no answer within {_NODE_SECONDS:.0f} s") from None
        except RayTaskError as error:
            if isinstance(error.cause, PackageError):
                raise InputError(
                    f"node {node.address}: {error.cause}; the package must be there on every node"
                ) from None
            raise InputError(
                f"node {node.address}: bitnet-onnx {own.version} with its extra `ray` does not run there: "
                f"{first_line(error.cause)}"
            ) from error
        except RayError as error:
            raise BitnetOnnxError(f"node {node.address}: {first_line(error)}") from error
        if report.version != own.version:
            raise InputError(
                f"node {node.address}: bitnet-onnx {report.version} is installed there, and {own.version} here; "
                f"install the same everywhere"
            )
        if report.manifest != own.manifest:
            raise InputError(f"node {node.address}: {package} is another package there; copy the same to every node")
        budgets.append(report.budget)
    return budgets


def _report(package: str) -> _NodeReport:
    """Runs on each node."""
    PackageInfo.open(package)
    manifest = hashlib.sha256((Path(package) / MANIFEST).read_bytes()).hexdigest()
    return _NodeReport(version("bitnet-onnx"), manifest, default_budget())
