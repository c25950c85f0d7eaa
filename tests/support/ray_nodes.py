"""A Ray cluster on this machine whose nodes, and processes on them, can be killed.

It is held by a process of its own, which this file run as a script is: Ray forgets processes that it has started, and
Python warns of each.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


class Nodes:
    """Nodes of one CPU each: a head, and others by their numbers from 1."""

    def __init__(self, holder: subprocess.Popen[str]) -> None:
        self._holder = holder
        self.address = ""
        self._raylets: list[int] = []
        self._alive = 0
        self._read()

    def add(self) -> int:
        """One more node."""
        self._ask("add")
        return len(self._raylets) - 1

    def kill(self, node: int) -> None:
        """Kills a node with all that runs on it."""
        self._ask(f"kill {node}")

    def alive(self) -> int:
        """How many nodes the cluster believes to have."""
        self._ask("count")
        return self._alive

    def workers(self, title: str) -> list[int]:
        """Process ids on these nodes by what their title begins with."""
        listed = subprocess.run(["ps", "-axo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
        rows = (line.split(None, 2) for line in listed.splitlines())
        titles = f"ray::{title}"
        return [int(row[0]) for row in rows if int(row[1]) in self._raylets and row[2].startswith(titles)]

    def _ask(self, command: str) -> None:
        assert self._holder.stdin is not None
        self._holder.stdin.write(f"{command}\n")
        self._holder.stdin.flush()
        self._read()

    def _read(self) -> None:
        assert self._holder.stdout is not None
        line = self._holder.stdout.readline()
        assert line, "Ray's cluster does not start; its messages are above"
        self.address, self._raylets, self._alive = json.loads(line)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def wait_until(true: Callable[[], object], seconds: float = 60.0) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, f"not within {seconds:g} s"
        time.sleep(0.02)


@contextmanager
def running_nodes(files: Path, environment: Mapping[str, str]) -> Iterator[Nodes]:
    """A head and one more node, whose files lie in a directory with a short name."""
    holder = subprocess.Popen(
        [sys.executable, "-P", "-W", "ignore", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**environment, "TMPDIR": str(files), "RAY_USAGE_STATS_ENABLED": "0"},
    )
    try:
        nodes = Nodes(holder)
        nodes.add()
        yield nodes
    finally:
        # The end of its input ends it.
        try:
            holder.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            holder.kill()
            holder.communicate()


def _hold() -> None:
    from ray.cluster_utils import Cluster

    options = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=dict(options))
    nodes = [cluster.head_node]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer() -> None:
        raylets = [node.all_processes["raylet"][0].process.pid for node in nodes if node.any_processes_alive()]
        alive = sum(node["Alive"] for node in cluster.global_state.node_table())
        print(json.dumps([cluster.address, raylets, alive]), file=answers, flush=True)

    answer()
    for line in sys.stdin:
        command, *number = line.split()
        if command == "add":
            nodes.append(cluster.add_node(**options))
        elif command == "kill":
            cluster.remove_node(nodes.pop(int(*number)), allow_graceful=False)
        answer()
    cluster.shutdown()


if __name__ == "__main__":
    _hold()
